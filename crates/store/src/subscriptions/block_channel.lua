#!lua flags=allow-oom
-- Blocks a channel that is delivered in order until its next message is tried again, and releases the channel.
-- KEYS: 1 cursor
-- ARGV: 1 worker, 2 token, 3 ms until it is tried again, 4 what went wrong, or '' when it was not tried at all
-- Returns how often it has failed in a row, or -1 when another has the channel.
-- May run twice: the second time the channel is another's.
local cursor = KEYS[1]
local worker, token, delay_ms, problem = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]

local known = redis.call('HMGET', cursor, 'o', 'k')
if known[1] ~= worker or known[2] ~= token then return -1 end
redis.call('HSET', cursor, 'w', string.format('%.0f', now_ms() + delay_ms))
redis.call('HDEL', cursor, 'o', 'u')
if problem == '' then return 0 end
redis.call('HSET', cursor, 'e', problem)
return redis.call('HINCRBY', cursor, 'n', 1)
