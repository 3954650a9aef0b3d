#!lua flags=allow-oom
-- Acknowledges messages of a subscription.
-- KEYS: 1 history, 2 cursor
-- ARGV: 1 group, 2 when the subscription was created, in ms, 3.. positions
-- Returns how many of them were pending until now.
-- May run twice: the second run acknowledges nothing.
local history, cursor = KEYS[1], KEYS[2]
local group, created_at = ARGV[1], ARGV[2]
local first_position = 3

-- The group belongs to another subscription of that name
local owner = redis.call('HGET', cursor, 'i')
if owner and owner ~= created_at then return 0 end
return redis.call('XACK', history, group, unpack(ARGV, first_position))
