#!lua flags=allow-oom
-- Compares the number of jobs in lanes with its counter.
-- KEYS: 1 stats, 2 lanes, 3.. lanes
-- ARGV: 1 "1" to set the counter
-- Returns 1 when it is right or the list of lanes is old, else 0.
-- May run twice: the second run finds it right.
local stats, waiting_keys = KEYS[1], KEYS[2]
local is_repair = ARGV[1] == '1'
local FIRST_KEY_QUEUE = 3

if redis.call('SCARD', waiting_keys) ~= #KEYS - (FIRST_KEY_QUEUE - 1) then return 1 end
local waiting = 0
for i = FIRST_KEY_QUEUE, #KEYS do waiting = waiting + redis.call('ZCARD', KEYS[i]) end
if tonumber(redis.call('HGET', stats, 'key_waiting') or '0') == waiting then return 1 end
if is_repair then redis.call('HSET', stats, 'key_waiting', waiting) end
return 0
