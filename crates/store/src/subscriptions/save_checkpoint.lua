#!lua flags=allow-oom
-- Notes how far one worker of a broadcast is.
-- KEYS: 1 its checkpoint, 2 workers of the broadcast, 3 figures of the subscription
-- ARGV: 1 worker, 2 generation, 3 TTL in ms, 4 delivered since the last time, 5 not wanted since then, 6 1 if these are
--       all channels, 7.. fields and what they are: channels and positions, and since when the worker is there
-- Returns 1 if something was noted in that generation before, else 0: then all channels are to be noted.
-- May run twice: figures may count a little more then.
local now = now_ms()
local is_known = redis.call('HGET', KEYS[1], '') == ARGV[2]
if not is_known or ARGV[6] == '1' then redis.call('DEL', KEYS[1]) end
redis.call('HSET', KEYS[1], '', ARGV[2])
-- One by one: there may be more than Lua passes on at once
for i = 7, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('ZADD', KEYS[2], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now - tonumber(ARGV[3]))
redis.call('PEXPIRE', KEYS[2], ARGV[3])
if ARGV[4] ~= '0' then
  redis.call('HINCRBY', KEYS[3], 'delivered', ARGV[4])
  redis.call('HSET', KEYS[3], 'at', string.format('%.0f', now))
  redis.call('HDEL', KEYS[3], 'failing')
end
if ARGV[5] ~= '0' then redis.call('HINCRBY', KEYS[3], 'filtered', ARGV[5]) end
if ARGV[4] ~= '0' or ARGV[5] ~= '0' then keep_figures(KEYS[3]) end
return is_known and 1 or 0
