#!lua flags=allow-oom
-- Acknowledges messages of a subscription and counts them.
-- KEYS: 1 history, 2 counters of the subscription
-- ARGV: 1 group, 2 how many were delivered, 3 how many were filtered out, 4.. positions
-- Returns how many of them were pending until now.
-- May run twice: the second run acknowledges nothing and counts nothing.
local history, counters = KEYS[1], KEYS[2]
local group, delivered, filtered = ARGV[1], ARGV[2], ARGV[3]
local first_position = 4

local acked = redis.call('XACK', history, group, unpack(ARGV, first_position))
if acked > 0 then
  if delivered ~= '0' then
    redis.call('HINCRBY', counters, 'delivered', delivered)
    redis.call('HSET', counters, 'last_delivered_at', string.format('%.0f', now_ms()))
    end_failures(counters)
  end
  if filtered ~= '0' then redis.call('HINCRBY', counters, 'filtered', filtered) end
  extend_counters_ttl(counters)
end
return acked
