#!lua
-- Restores the subscriptions that a worker still knows, if Redis lost all of them.
-- KEYS: 1 subscriptions
-- ARGV: 1 notification channel, 2 notification, 3.. names and subscriptions
-- Returns 1 when it restored them, else 0.
-- May run twice, and several workers may run it: only the first run finds no subscriptions.
local subscriptions = KEYS[1]
local notifications, notification = ARGV[1], ARGV[2]
local first_name = 3

if redis.call('EXISTS', subscriptions) == 1 then return 0 end
redis.call('HSET', subscriptions, '', '1')
-- One by one: there may be more subscriptions than Lua passes as arguments
for i = first_name, #ARGV, 2 do redis.call('HSET', subscriptions, ARGV[i], ARGV[i + 1]) end
redis.pcall('PUBLISH', notifications, notification)
return 1
