#!lua flags=allow-oom
-- Ends an attempt and with it the job: completed or discarded.
-- KEYS: 1 stream, 2 active, 3 leases, 4 record, 5 result, 6 dead letters, 7 stats, 8 timers, 9 held
-- ARGV: 1 entry, 2 member, 3 kind, 4 a, 5 b (see fence.lua), 6 state, 7 result, 8 TTL in ms, 9 id,
--       10 "1" to list it as a dead letter, 11 most dead letters, 12 channel for those who wait,
--       13 "1" when something follows the job's end
-- Returns "done", "done_before" when an earlier run of this call did it, or "stale".
-- May run twice: the second run finds its own result.
if not held(KEYS[1], KEYS[2], KEYS[3], ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]) then
  if redis.call('GETRANGE', KEYS[5], 0, #ARGV[2]) == ARGV[2] .. '\n' then return 'done_before' end
  return 'stale'
end
take_out(KEYS[1], KEYS[2], KEYS[3], ARGV[1], ARGV[2])
redis.call('DEL', KEYS[4])
redis.call('SET', KEYS[5], ARGV[7], 'PX', ARGV[8])
redis.call('HINCRBY', KEYS[7], ARGV[6], 1)
if ARGV[10] == '1' then
  redis.call('ZADD', KEYS[6], now_ms(), ARGV[9])
  redis.call('ZREMRANGEBYRANK', KEYS[6], 0, -(tonumber(ARGV[11]) + 1))
end
job_is_over(KEYS[8], KEYS[9], ARGV[9], ARGV[13])
redis.call('PUBLISH', ARGV[12], ARGV[9])
return 'done'
