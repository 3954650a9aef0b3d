#!lua flags=allow-oom
-- Saves how far one worker of a broadcast is.
-- KEYS: 1 checkpoint of the worker, 2 workers of the broadcast, 3 counters of the subscription
-- ARGV: 1 worker, 2 generation, 3 TTL in ms, 4 messages delivered since the last call, 5 messages filtered out since
--       then, 6 "1" if the call lists all channels, 7 the process, 8.. fields and values: channels and positions, and
--       when the worker started
-- Returns {1 if a checkpoint of this generation exists, else 0: then the next call must list all channels, the process
-- that saved last, or ''}.
-- May run twice: the counters may count messages twice.
local checkpoint, workers, counters = KEYS[1], KEYS[2], KEYS[3]
local worker, generation, ttl_ms, delivered, filtered = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local lists_all, process = ARGV[6] == '1', ARGV[7]
local first_field = 8

local now = now_ms()
local known = redis.call('HMGET', checkpoint, '', ' by')
local is_known, saved_by = known[1] == generation, known[2] or ''
if not is_known or lists_all then redis.call('DEL', checkpoint) end
redis.call('HSET', checkpoint, '', generation, ' by', process)
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
return { is_known and 1 or 0, saved_by }
