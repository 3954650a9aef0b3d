#!lua flags=allow-oom
-- Removes a cron entry, if it is stored as the caller read it.
-- KEYS: 1 entries, 2 next runs
-- ARGV: 1 name, 2 entry as the caller read it, or "" for none: then only its next run is removed
-- Returns 1, or 0 when the entry has changed.
-- May run twice: the second run finds no entry.
local entries, next_runs = KEYS[1], KEYS[2]
local name, known_entry = ARGV[1], ARGV[2]

if (redis.call('HGET', entries, name) or '') ~= known_entry then return 0 end
redis.call('HDEL', entries, name)
redis.call('ZREM', next_runs, name)
return 1
