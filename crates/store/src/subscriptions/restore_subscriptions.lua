#!lua
-- Restores the subscriptions that a worker still knows, if Redis lost all of them.
-- KEYS: 1 subscriptions
-- ARGV: 1 wake channel, 2 wake message, 3.. names and subscriptions
-- Returns 1 if they were put back.
-- May run twice, and by several workers: one is the first.
local subscriptions = KEYS[1]
local notifications, notification = ARGV[1], ARGV[2]
local FIRST_NAME = 3

if redis.call('EXISTS', subscriptions) == 1 then return 0 end
redis.call('HSET', subscriptions, '', '1')
-- One by one: there may be more than Lua passes on at once
for i = FIRST_NAME, #ARGV, 2 do redis.call('HSET', subscriptions, ARGV[i], ARGV[i + 1]) end
redis.call('PUBLISH', notifications, notification)
return 1
