#!lua
-- Stores a cron entry, if what is stored still is what the caller read.
-- KEYS: 1 entries, 2 next
-- ARGV: 1 name, 2 entry as it was read or "" for none, 3 entry to store, 4 when to look at it in ms or "" for never,
--       5 most entries, 6 wake channel, 7 wake message
-- Returns "saved", "before" when it is stored like that already, "changed", or "full" when there is no room for another.
-- May run twice: the second run finds it stored.
local problem = obstacle(KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[5])
if problem then return problem end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
if ARGV[4] == '' then
  redis.call('ZREM', KEYS[2], ARGV[1])
else
  redis.call('ZADD', KEYS[2], ARGV[4], ARGV[1])
  wake_if_first(KEYS[2], ARGV[1], ARGV[6], ARGV[7])
end
return 'saved'
