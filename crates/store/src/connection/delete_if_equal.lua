#!lua flags=allow-oom
-- Gives up what somebody holds (the uniqueness of a job that is over, a request that had no effect, the leader lease), if it still
-- is theirs.
-- KEYS: 1 what is held
-- ARGV: 1 what stands there as long as it is theirs
-- Returns 1 when it was given up, else 0.
-- May run twice: the second run finds another holder, or none.
local key = KEYS[1]
local expected = ARGV[1]

if redis.call('GET', key) ~= expected then return 0 end
return redis.call('DEL', key)
