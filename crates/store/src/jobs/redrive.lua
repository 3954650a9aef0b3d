#!lua
-- Makes a dead letter available again.
-- KEYS: 1 dead letters, 2 result, 3 record, 4 stream, 5 priorities, 6 key queue, 7 waiting keys, 8 limit of the key,
--       9 timers, 10 stats
-- ARGV: 1 id, 2 priority, 3 notification channel, 4 notification (stream), 5 key of the limit or "", 6 the limit or "",
--       7 ms at which the job expires or "", 8 notification (due), 9.. fields and values of the job
-- Returns 1, or 0 when the job is not a dead letter any more.
-- May run twice: the second run finds no dead letter.
local dead_letters, result, record, stream, priorities = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local key_queue, waiting_keys, limit, timers, stats = KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10]
local id, priority, notifications, stream_notification = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local limit_key, policy, expires_at, due_notification = ARGV[5], ARGV[6], ARGV[7], ARGV[8]
local first_field = 9

if not redis.call('ZSCORE', dead_letters, id) or redis.call('EXISTS', result) == 0 then return 0 end
if limit_key == '' then
  local fields = { 'i', id, unpack(ARGV, first_field) }
  local entry = add_entry(stream, priorities, priority, notifications, stream_notification, fields)
  note_entry(record, priority, entry)
else
  redis.call('HSET', record, 's', 'key_waiting', 'p', priority, unpack(ARGV, first_field))
  enqueue_for_key(key_queue, waiting_keys, limit, timers, stats, id, priority, limit_key, policy, now_ms())
end
expire_at(timers, id, expires_at, notifications, due_notification)
redis.call('DEL', result)
redis.call('ZREM', dead_letters, id)
return 1
