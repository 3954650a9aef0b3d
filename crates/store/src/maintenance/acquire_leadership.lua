#!lua flags=allow-oom
-- Acquires or renews the leader lease of maintenance.
-- KEYS: 1 leader lease
-- ARGV: 1 who, 2 term in ms
-- Returns 1 when the caller is the leader now, else 0.
-- May run twice: the term is set, not added to.
local leader = KEYS[1]
local holder_name, lease_ms = ARGV[1], ARGV[2]

local holder = redis.call('GET', leader)
if holder and holder ~= holder_name then return 0 end
redis.call('SET', leader, holder_name, 'PX', lease_ms)
return 1
