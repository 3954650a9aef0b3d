#!lua flags=allow-oom
-- Blocks a channel that is delivered in order until its next message is tried again, and releases the channel.
-- KEYS: 1 cursor
-- ARGV: 1 worker, 2 token, 3 ms until the next attempt, 4 error, or '' when there was no attempt
-- Returns how often the message has failed in a row, or -1 when another worker owns the channel.
-- May run twice: the second run finds that the worker no longer owns the channel.
local cursor = KEYS[1]
local worker, token, delay_ms, problem = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]

local known = redis.call('HMGET', cursor, 'o', 'k')
if known[1] ~= worker or known[2] ~= token then return -1 end
redis.call('HSET', cursor, 'w', string.format('%.0f', now_ms() + delay_ms), 'wd', delay_ms)
-- This worker did not vanish
redis.call('HDEL', cursor, 'o', 'u', 'c')
if problem == '' then return 0 end
redis.call('HSET', cursor, 'e', problem)
return redis.call('HINCRBY', cursor, 'n', 1)
