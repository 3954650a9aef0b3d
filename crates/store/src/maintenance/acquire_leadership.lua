#!lua flags=allow-oom
-- Acquires or extends the leader lease.
-- KEYS: 1 leader
-- ARGV: 1 process, 2 lease in ms
-- Returns 1 when the process is the leader now, else 0.
-- May run twice: it sets the lease to the same length.
local leader = KEYS[1]
local process, lease_ms = ARGV[1], ARGV[2]

local current = redis.call('GET', leader)
if current and current ~= process then return 0 end
redis.call('SET', leader, process, 'PX', lease_ms)
return 1
