#!lua flags=allow-oom
-- Ends an attempt and its job: completed or discarded.
-- KEYS: 1 stream, 2 active, 3 leases, 4 record, 5 result, 6 dead letters, 7 stats, 8 timers, 9 admitted,
--       10 discarded, 11 log, 12 index of completed jobs, 13 checkpoint, 14 signals
-- ARGV: 1 entry, 2 attempt name, 3 to 5 fence: kind, owner, detail (see fence.lua), 6 final state, 7 result as text,
--       8 TTL of the result in ms, or 0 when Redis is too full for it, 9 id, 10 "1" to list the job as a dead letter, 11 channel of
--       finished jobs, 12 "1" when the job has a follow-up, 13 TTL in ms of 7 if 8 is 0: a note that stands for the
--       result, 14 notification channel, 15 notification (due), 16 most ids in discarded, 17 its TTL in ms,
--       18 most jobs in the index, 19 the id in base64
-- Returns "done", "done_before" when an earlier run of this call ended the job, or "stale" when the attempt is not the
-- current one.
-- May run twice: the second run finds its own result.
local stream, active, leases, record, result = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local dead_letters, stats, timers, admitted, discarded = KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10]
local log, index, checkpoint, signals = KEYS[11], KEYS[12], KEYS[13], KEYS[14]
local entry, attempt_name, fence_kind, fence_owner, fence_detail = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local final_state, result_text, result_ttl_ms, id = ARGV[6], ARGV[7], ARGV[8], ARGV[9]
local is_dead_letter, finished, has_follow_up, note_ttl_ms = ARGV[10] == '1', ARGV[11], ARGV[12], ARGV[13]
local notifications, due_notification = ARGV[14], ARGV[15]
local max_discarded, discarded_ttl_ms, max_indexed = tonumber(ARGV[16]), ARGV[17], tonumber(ARGV[18])
local short_id = ARGV[19]

if not is_current_attempt(stream, active, leases, entry, attempt_name, fence_kind, fence_owner, fence_detail) then
  if redis.call('GETRANGE', result, 0, #attempt_name) == attempt_name .. '\n' then return 'done_before' end
  return 'stale'
end
remove_entry(stream, active, leases, entry, attempt_name)
if final_state == 'completed' then
  redis.call('DEL', record, checkpoint, signals)
else
  -- If somebody runs the job again, it goes on from there
  redis.call('DEL', record)
  redis.call('PEXPIRE', checkpoint, result_ttl_ms)
  redis.call('PEXPIRE', signals, result_ttl_ms)
end
-- A note tells the second run that the first ended the job
local is_stored = result_ttl_ms ~= '0'
redis.call('SET', result, result_text, 'PX', is_stored and result_ttl_ms or note_ttl_ms)
redis.call('PEXPIRE', log, result_ttl_ms)
local total = redis.call('HINCRBY', stats, final_state, 1)
if is_dead_letter then redis.call('ZADD', dead_letters, now_ms(), id) end
if final_state == 'discarded' and is_stored then list_ended(discarded, id, max_discarded, discarded_ttl_ms) end
if final_state == 'completed' and is_stored then
  index_completed(index, total, 1, max_indexed, now_ms(), short_id, result_ttl_ms)
end
after_end(timers, admitted, id, has_follow_up, notifications, due_notification)
publish_topic(finished, id)
return 'done'
