#!lua flags=allow-oom
-- Lets other jobs have the uniqueness of a job that ended. A job that was redriven meanwhile keeps it.
-- KEYS: 1 uniqueness, 2 result of the job
-- ARGV: 1 id of the job
-- Returns 1 when the job had the uniqueness, else 0.
-- May run twice: the second run finds another holder, or none.
local uniqueness, result = KEYS[1], KEYS[2]
local id = ARGV[1]

if redis.call('EXISTS', result) == 0 or redis.call('GET', uniqueness) ~= id then return 0 end
return redis.call('DEL', uniqueness)
