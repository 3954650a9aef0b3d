#!lua flags=allow-oom
-- Makes a discarded or cancelled job available again, with a new history. It takes about the room of the end that it
-- removes, so operators can redrive when Redis is full.
-- KEYS: 1 dead letters, 2 result, 3 record, 4 stream, 5 priorities, 6 key queue, 7 waiting keys, 8 limit of the key,
--       9 timers, 10 stats, 11 uniqueness, 12 discarded or cancelled: where it is listed, 13 log, 14 record of the holder of
--       uniqueness that the caller saw ended, else of the job, 15 checkpoint, 16 signals
-- ARGV: 1 id, 2 priority, 3 the state that it ended in, 4 the first line of its result, 5 notification channel,
--       6 notification (stream), 7 key of the limit or "", 8 the limit or "", 9 ms at which the job expires or "",
--       10 notification (due), 11 the id that the caller read from uniqueness, "" for none, "-" when the job need not be
--       unique, 12 TTL of uniqueness in ms, 13.. fields and values of the job
-- Returns "done", or "changed" when the job or the holder of its uniqueness is not as the caller saw it.
-- May run twice: the second run finds no result.
local dead_letters, result, record, stream, priorities = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local key_queue, waiting_keys, limit, timers, stats = KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10]
local uniqueness, list, log, holder_record, checkpoint = KEYS[11], KEYS[12], KEYS[13], KEYS[14], KEYS[15]
local signals = KEYS[16]
local id, priority, ended_state, first_line = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local notifications, stream_notification, limit_key, policy = ARGV[5], ARGV[6], ARGV[7], ARGV[8]
local leader = { notifications = ARGV[5], notification = ARGV[10] }
local expires_at, due_notification, known_holder, uniqueness_ttl_ms = ARGV[9], ARGV[10], ARGV[11], ARGV[12]
local first_field = 13

-- The first line names the attempt that ended the job: a job that ran again meanwhile has another
if redis.call('GETRANGE', result, 0, #first_line) ~= first_line .. '\n' then return 'changed' end
if known_holder ~= '-' and (redis.call('GET', uniqueness) or '') ~= known_holder then return 'changed' end
-- A unique job that lives has a record: who had ended and has one was redriven, and holds uniqueness as before
if known_holder ~= '-' and redis.call('EXISTS', holder_record) == 1 then return 'changed' end

if known_holder ~= '-' then redis.call('SET', uniqueness, id, 'PX', uniqueness_ttl_ms) end
redis.call('DEL', result)
-- Until the job ends again, or for 90 days
redis.call('PEXPIRE', log, 7776000000)
redis.call('PEXPIRE', checkpoint, 7776000000)
redis.call('PEXPIRE', signals, 7776000000)
redis.call('ZREM', dead_letters, id)
redis.call('ZREM', list, id)
-- The job has not ended any more: its next end counts
if tonumber(redis.call('HGET', stats, ended_state) or '0') > 0 then redis.call('HINCRBY', stats, ended_state, -1) end
expire_at(timers, id, expires_at, notifications, due_notification)
if limit_key == '' then
  local fields = { 'i', id, unpack(ARGV, first_field) }
  local entry = add_entry(stream, priorities, priority, notifications, stream_notification, fields)
  note_entry(record, priority, entry)
else
  redis.call('HSET', record, 's', 'key_waiting', 'p', priority, unpack(ARGV, first_field))
  enqueue_for_key(key_queue, waiting_keys, limit, timers, stats, id, priority, limit_key, policy, leader)
end
return 'done'
