#!lua flags=allow-oom
-- Notes that messages are done with.
-- KEYS: 1 history, 2 figures of the subscription
-- ARGV: 1 group, 2 how many were delivered, 3 how many were not wanted, 4 positions from here on
-- Returns how many were not done with before.
-- May run twice: figures count what was acknowledged now, or nothing.
local history, counters = KEYS[1], KEYS[2]
local group, delivered, filtered = ARGV[1], ARGV[2], ARGV[3]
local FIRST_POSITION = 4

local acked = redis.call('XACK', history, group, unpack(ARGV, FIRST_POSITION))
if acked > 0 then
  if delivered ~= '0' then
    redis.call('HINCRBY', counters, 'delivered', delivered)
    redis.call('HSET', counters, 'last_delivered_at', string.format('%.0f', now_ms()))
    redis.call('HDEL', counters, 'failing_since')
  end
  if filtered ~= '0' then redis.call('HINCRBY', counters, 'filtered', filtered) end
  extend_counters_ttl(counters)
end
return acked
