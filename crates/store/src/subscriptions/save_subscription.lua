#!lua
-- Stores or removes a subscription, if the old one is stored as the caller read it.
-- KEYS: 1 subscriptions
-- ARGV: 1 name, 2 subscription as it was read or "" for none, 3 subscription to store or "" to remove it,
--       4 most subscriptions, 5 wake channel, 6 wake message
-- Returns "saved", "before" when it is like that already, "changed", or "full" when there is no room for another.
-- The field "" says that the list was begun: one that has vanished without it was lost.
-- May run twice: the second run finds it stored.
local subscriptions = KEYS[1]
local name, known, wanted, max_subscriptions, notifications = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local notification = ARGV[6]

local problem = compare_and_set(subscriptions, name, known, wanted, max_subscriptions + 1)
if problem then return problem end
redis.call('HSET', subscriptions, '', '1')
if wanted == '' then redis.call('HDEL', subscriptions, name) else redis.call('HSET', subscriptions, name, wanted) end
redis.call('PUBLISH', notifications, notification)
return 'saved'
