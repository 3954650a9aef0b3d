#!lua flags=allow-oom
-- Deletes a lock that still belongs to the caller: the leader lease.
-- KEYS: 1 lock
-- ARGV: 1 value of the lock while it belongs to the caller
-- Returns 1 when it was deleted, else 0.
-- May run twice: the second run finds another owner, or none.
local lock = KEYS[1]
local owner = ARGV[1]

if redis.call('GET', lock) ~= owner then return 0 end
return redis.call('DEL', lock)
