#!lua flags=allow-oom
-- Saves how far one worker of a broadcast is.
-- KEYS: 1 checkpoint of the worker, 2 workers of the broadcast, 3 counters of the subscription
-- ARGV: 1 worker, 2 generation, 3 TTL in ms, 4 messages delivered since the last call, 5 messages filtered out since
--       then, 6 "1" if the call lists all channels, 7.. fields and values: channels and positions, and when the worker
--       started
-- Returns 1 if a checkpoint of this generation exists, else 0: then the next call must list all channels.
-- May run twice: the counters may count messages twice.
local checkpoint, workers, counters = KEYS[1], KEYS[2], KEYS[3]
local worker, generation, ttl_ms, delivered, filtered = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local lists_all = ARGV[6] == '1'
local first_field = 7

local now = now_ms()
local is_known = redis.call('HGET', checkpoint, '') == generation
if not is_known or lists_all then redis.call('DEL', checkpoint) end
redis.call('HSET', checkpoint, '', generation)
-- One by one: there may be more channels than Lua passes as arguments
for i = first_field, #ARGV, 2 do redis.call('HSET', checkpoint, ARGV[i], ARGV[i + 1]) end
redis.call('PEXPIRE', checkpoint, ttl_ms)
redis.call('ZADD', workers, now, worker)
redis.call('ZREMRANGEBYSCORE', workers, '-inf', now - tonumber(ttl_ms))
redis.call('PEXPIRE', workers, ttl_ms)
if delivered ~= '0' then
  redis.call('HINCRBY', counters, 'delivered', delivered)
  redis.call('HSET', counters, 'last_delivered_at', string.format('%.0f', now))
  end_failures(counters)
end
if filtered ~= '0' then redis.call('HINCRBY', counters, 'filtered', filtered) end
if delivered ~= '0' or filtered ~= '0' then extend_counters_ttl(counters) end
return is_known and 1 or 0
