#!lua flags=allow-oom
-- Notes how far one worker of a broadcast is.
-- KEYS: 1 its checkpoint, 2 workers of the broadcast, 3 figures of the subscription
-- ARGV: 1 worker, 2 generation, 3 TTL in ms, 4 delivered since the last time, 5 not wanted since then, 6 1 if these are
--       all channels, 7.. fields and what they are: channels and positions, and since when the worker is there
-- Returns 1 if something was noted in that generation before, else 0: then all channels are to be noted.
-- May run twice: figures may count a little more then.
local checkpoint, workers, counters = KEYS[1], KEYS[2], KEYS[3]
local worker, generation, ttl_ms, delivered, filtered = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local is_complete = ARGV[6] == '1'
local FIRST_FIELD = 7

local now = now_ms()
local is_known = redis.call('HGET', checkpoint, '') == generation
if not is_known or is_complete then redis.call('DEL', checkpoint) end
redis.call('HSET', checkpoint, '', generation)
-- One by one: there may be more than Lua passes on at once
for i = FIRST_FIELD, #ARGV, 2 do redis.call('HSET', checkpoint, ARGV[i], ARGV[i + 1]) end
redis.call('PEXPIRE', checkpoint, ttl_ms)
redis.call('ZADD', workers, now, worker)
redis.call('ZREMRANGEBYSCORE', workers, '-inf', now - ttl_ms)
redis.call('PEXPIRE', workers, ttl_ms)
if delivered ~= '0' then
  redis.call('HINCRBY', counters, 'delivered', delivered)
  redis.call('HSET', counters, 'last_delivered_at', string.format('%.0f', now))
  redis.call('HDEL', counters, 'failing_since')
end
if filtered ~= '0' then redis.call('HINCRBY', counters, 'filtered', filtered) end
if delivered ~= '0' or filtered ~= '0' then extend_counters_ttl(counters) end
return is_known and 1 or 0
