#!lua flags=allow-oom
-- Notes that the next message of a channel that is delivered in order has failed, and gives the channel back.
-- KEYS: 1 cursor
-- ARGV: 1 worker, 2 token, 3 ms until it is tried again, 4 what went wrong, or '' when it was not tried at all
-- Returns how often it has failed in a row, or -1 when another has the channel.
-- May run twice: the second time the channel is another's.
local known = redis.call('HMGET', KEYS[1], 'o', 'k')
if known[1] ~= ARGV[1] or known[2] ~= ARGV[2] then return -1 end
redis.call('HSET', KEYS[1], 'w', string.format('%.0f', now_ms() + tonumber(ARGV[3])))
redis.call('HDEL', KEYS[1], 'o', 'u')
if ARGV[4] == '' then return 0 end
redis.call('HSET', KEYS[1], 'e', ARGV[4])
return redis.call('HINCRBY', KEYS[1], 'n', 1)
