#!lua flags=allow-oom
-- Compares the number of jobs in lanes with its counter.
-- KEYS: 1 stats, 2 lanes, 3.. lanes
-- ARGV: 1 "1" to set the counter
-- Returns 1 when it is right or the list of lanes is old, else 0.
-- May run twice: the second run finds it right.
if redis.call('SCARD', KEYS[2]) ~= #KEYS - 2 then return 1 end
local laned = 0
for i = 3, #KEYS do laned = laned + redis.call('ZCARD', KEYS[i]) end
if tonumber(redis.call('HGET', KEYS[1], 'laned') or '0') == laned then return 1 end
if ARGV[1] == '1' then redis.call('HSET', KEYS[1], 'laned', laned) end
return 0
