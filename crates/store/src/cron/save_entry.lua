#!lua
-- Stores a cron entry, if what is stored still is what the caller read.
-- KEYS: 1 entries, 2 next
-- ARGV: 1 name, 2 entry as it was read or "" for none, 3 entry to store, 4 when to look at it in ms or "" for never,
--       5 most entries, 6 wake channel, 7 wake message
-- Returns "saved", "before" when it is stored like that already, "changed", or "full" when there is no room for another.
-- May run twice: the second run finds it stored.
local entries, next_checks = KEYS[1], KEYS[2]
local name, known, wanted, check_at, max_entries, notifications = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local notification = ARGV[7]

local problem = compare_and_set(entries, name, known, wanted, max_entries)
if problem then return problem end
redis.call('HSET', entries, name, wanted)
if check_at == '' then
  redis.call('ZREM', next_checks, name)
else
  redis.call('ZADD', next_checks, check_at, name)
  notify_if_first(next_checks, name, notifications, notification)
end
return 'saved'
