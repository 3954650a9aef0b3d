#!lua flags=allow-oom
-- Removes a cron entry, if what is stored still is what the caller read.
-- KEYS: 1 entries, 2 next
-- ARGV: 1 name, 2 entry as it was read, or "" for none: then only its time is removed
-- Returns 1, or 0 when it changed.
-- May run twice: the second run finds it gone.
if (redis.call('HGET', KEYS[1], ARGV[1]) or '') ~= ARGV[2] then return 0 end
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
return 1
