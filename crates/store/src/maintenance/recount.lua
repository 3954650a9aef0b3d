#!lua flags=allow-oom
-- Compares the number of jobs in key queues with its counter.
-- KEYS: 1 stats, 2 waiting keys, 3.. key queues
-- ARGV: 1 "1" to correct the counter
-- Returns 1 when the counter is right or the caller's list of key queues is old, else 0.
-- May run twice: the second run finds the counter right.
local stats, waiting_keys = KEYS[1], KEYS[2]
local may_repair = ARGV[1] == '1'
local first_key_queue = 3

if redis.call('SCARD', waiting_keys) ~= #KEYS - first_key_queue + 1 then return 1 end
local waiting = 0
for i = first_key_queue, #KEYS do waiting = waiting + redis.call('ZCARD', KEYS[i]) end
if tonumber(redis.call('HGET', stats, 'key_waiting') or '0') == waiting then return 1 end
if may_repair then redis.call('HSET', stats, 'key_waiting', waiting) end
return 0
