#!lua flags=allow-oom
-- Acknowledges messages of a subscription and counts them.
-- KEYS: 1 history, 2 counters of the subscription, 3 cursor
-- ARGV: 1 group, 2 how many were delivered, 3 how many were filtered out, 4 when the subscription
--       was created, in ms, 5.. positions
-- Returns how many of them were pending until now.
-- May run twice: the second run acknowledges nothing and counts nothing.
local history, counters, cursor = KEYS[1], KEYS[2], KEYS[3]
local group, delivered, filtered, created_at = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local first_position = 5

-- The group belongs to another subscription of that name
local owner = redis.call('HGET', cursor, 'i')
if owner and owner ~= created_at then return 0 end

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
