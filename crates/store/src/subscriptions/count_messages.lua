#!lua flags=allow-oom
-- Counts messages of a subscription that were processed.
-- KEYS: 1 counters of the subscription
-- ARGV: 1 how many were delivered, 2 how many were filtered out
-- Returns 1.
-- May run twice: it counts them twice.
local counters = KEYS[1]
local delivered, filtered = ARGV[1], ARGV[2]

if delivered ~= '0' then
  redis.call('HINCRBY', counters, 'delivered', delivered)
  redis.call('HSET', counters, 'last_delivered_at', string.format('%.0f', now_ms()))
  -- Earlier failures do not count against the target any more
  redis.call('HDEL', counters, 'failing_since', 'failing')
end
if filtered ~= '0' then redis.call('HINCRBY', counters, 'filtered', filtered) end
extend_counters_ttl(counters)
return 1
