#!lua flags=allow-oom
-- Removes a cron entry, if what is stored still is what the caller read.
-- KEYS: 1 entries, 2 next
-- ARGV: 1 name, 2 entry as it was read, or "" for none: then only its time is removed
-- Returns 1, or 0 when it changed.
-- May run twice: the second run finds it gone.
local entries, next_checks = KEYS[1], KEYS[2]
local name, known = ARGV[1], ARGV[2]

if (redis.call('HGET', entries, name) or '') ~= known then return 0 end
redis.call('HDEL', entries, name)
redis.call('ZREM', next_checks, name)
return 1
