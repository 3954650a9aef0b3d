#!lua flags=allow-oom
-- Ends a job that has not finished, wherever it waits or runs: cancelled, or discarded because its deadline has passed.
-- KEYS: 1 stream, 2 active, 3 leases, 4 record, 5 result, 6 due, 7 pending, 8 timers, 9 key queue, 10 admitted, 11 stats
-- ARGV: 1 where the caller saw the job: "entry" or "record", 2 id, 3 final state, 4 result as text, 5 TTL of the result
--       in ms, 6 notification channel, 7 notification, 8 channel of finished jobs, 9 "1" when the job has a follow-up,
--       for "entry": 10 entry, 11 attempt name, 12 consumer that had the entry when the caller looked, or ""
--       for "record": 10 state of the record when the caller looked
-- Returns "done", or "changed" when the job is no longer where the caller saw it: the caller locates it again.
-- May run twice: the second run returns "changed", and the caller then finds the result.
local stream, active, leases, record = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local result, due, pending, timers = KEYS[5], KEYS[6], KEYS[7], KEYS[8]
local key_queue, admitted, stats = KEYS[9], KEYS[10], KEYS[11]
local seen_in, id, final_state, result_text, result_ttl_ms = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local notifications, notification, finished, has_follow_up = ARGV[6], ARGV[7], ARGV[8], ARGV[9]
local entry, attempt_name, seen_consumer = ARGV[10], ARGV[11], ARGV[12]
local seen_state = ARGV[10]

if seen_in == 'entry' then
  local found = redis.call('XRANGE', stream, entry, entry)
  if #found == 0 then return 'changed' end
  local claimed = redis.pcall('XPENDING', stream, 'workers', entry, entry, 1)
  local consumer = ''
  if not claimed.err and #claimed == 1 then consumer = claimed[1][2] end
  if consumer ~= seen_consumer then return 'changed' end
  remove_entry(stream, active, leases, entry, attempt_name)
else
  if redis.call('HGET', record, 's') ~= seen_state then return 'changed' end
  redis.call('ZREM', due, id)
  redis.call('ZREM', pending, id)
  if seen_state == 'key_waiting' and redis.call('ZREM', key_queue, id) == 1 then
    redis.call('HINCRBY', stats, 'key_waiting', -1)
  end
end
redis.call('DEL', record)
redis.call('SET', result, result_text, 'PX', result_ttl_ms)
redis.call('HINCRBY', stats, final_state, 1)
after_end(timers, admitted, id, has_follow_up)
redis.call('PUBLISH', notifications, notification)
redis.call('PUBLISH', finished, id)
return 'done'
