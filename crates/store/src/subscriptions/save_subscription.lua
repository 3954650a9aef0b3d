#!lua
-- Stores a subscription, or removes it, if what is stored still is what the caller read.
-- KEYS: 1 subscriptions
-- ARGV: 1 name, 2 subscription as it was read or "" for none, 3 subscription to store or "" to remove it,
--       4 most subscriptions, 5 wake channel, 6 wake message
-- Returns "saved", "before" when it is like that already, "changed", or "full" when there is no room for another.
-- The field "" says that the list was begun: one that has vanished without it was lost.
-- May run twice: the second run finds it stored.
local problem = obstacle(KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4] + 1)
if problem then return problem end
redis.call('HSET', KEYS[1], '', '1')
if ARGV[3] == '' then redis.call('HDEL', KEYS[1], ARGV[1]) else redis.call('HSET', KEYS[1], ARGV[1], ARGV[3]) end
redis.call('PUBLISH', ARGV[5], ARGV[6])
return 'saved'
