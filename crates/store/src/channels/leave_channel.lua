#!lua flags=allow-oom
-- Removes a subscription's group and cursor from a channel.
-- KEYS: 1 history, 2 cursor
-- ARGV: 1 group, 2 when the subscription was created, in ms, or '' for any
-- Returns 1, or 0 if they belong to another subscription of that name.
-- May run twice: the second run finds nothing.
local history, cursor = KEYS[1], KEYS[2]
local group, created_at = ARGV[1], ARGV[2]

local owner = redis.call('HGET', cursor, 'i')
if created_at ~= '' and owner and owner ~= created_at then return 0 end
-- Without a history there are no groups
redis.pcall('XGROUP', 'DESTROY', history, group)
redis.call('DEL', cursor)
return 1
