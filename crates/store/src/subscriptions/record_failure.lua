#!lua flags=allow-oom
-- Counts a failed delivery.
-- KEYS: 1 counters of the subscription
-- ARGV: 1 "1" if the target is at fault and not the message, 2 "1" if it is the first attempt at a message
-- Returns {time of the first failure of the target since the last success or 0, now, messages that failed since then},
-- times in ms.
-- May run twice: it counts the failure twice; the time of the first failure stays.
local counters = KEYS[1]
local is_target_at_fault, is_first_attempt = ARGV[1] == '1', ARGV[2] == '1'

local now = string.format('%.0f', now_ms())
redis.call('HINCRBY', counters, 'failed', 1)
if is_target_at_fault then
  redis.call('HSETNX', counters, 'failing_since', now)
  if is_first_attempt then redis.call('HINCRBY', counters, 'failing', 1) end
end
extend_counters_ttl(counters)
local streak = redis.call('HMGET', counters, 'failing_since', 'failing')
return { streak[1] or '0', now, streak[2] or '0' }
