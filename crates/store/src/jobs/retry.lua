#!lua flags=allow-oom
-- Ends an attempt that failed and sets the time of the next one.
-- KEYS: 1 stream, 2 active, 3 leases, 4 record, 5 due, 6 stats, 7 timers, 8 held
-- ARGV: 1 entry, 2 member, 3 kind, 4 a, 5 b (see fence.lua), 6 id, 7 priority, 8 delay ms, 9 wake channel,
--       10 wake message, 11 key of its limit or "", 12 ms at which the job expires or "", 13.. fields and values of the job
-- Returns {"done", due ms}, {"done_before", due ms} or {"stale"}.
-- May run twice: the record says which attempt it is from.
if not held(KEYS[1], KEYS[2], KEYS[3], ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]) then
  local record = redis.call('HMGET', KEYS[4], 'k', 'd')
  if record[1] == ARGV[2] and record[2] then return { 'done_before', record[2] } end
  return { 'stale' }
end
local now = now_ms()
local due = string.format('%d', now + tonumber(ARGV[8]))
take_out(KEYS[1], KEYS[2], KEYS[3], ARGV[1], ARGV[2])
redis.call('DEL', KEYS[4])
redis.call('HSET', KEYS[4], 's', 'retryable', 'p', ARGV[7], 'd', due, 'k', ARGV[2], unpack(ARGV, 13))
redis.call('ZADD', KEYS[5], due, ARGV[6])
redis.call('HINCRBY', KEYS[6], 'retried', 1)
if ARGV[11] ~= '' then
  -- Its place is free for another job with its key
  redis.call('ZREM', KEYS[8], ARGV[6])
  redis.call('ZADD', KEYS[7], 'LT', now + 1000, 'lane ' .. ARGV[11])
end
expire_at(KEYS[7], ARGV[6], ARGV[12], ARGV[9], ARGV[10])
wake_if_first(KEYS[5], ARGV[6], ARGV[9], ARGV[10])
return { 'done', due }
