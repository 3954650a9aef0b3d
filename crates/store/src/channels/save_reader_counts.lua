#!lua flags=allow-oom
-- Saves how many readers each channel has at one gateway.
-- KEYS: 1 reader counts of the gateway, 2 gateways
-- ARGV: 1 gateway, 2 TTL in ms, 3 "1" if the call lists all channels, 4.. channels and their number of readers
-- Returns 1 if the gateway's earlier counts still exist, else 0: then the next call must list all channels.
-- May run twice: it saves the same counts again.
local reader_counts, gateways = KEYS[1], KEYS[2]
local gateway, ttl_ms, lists_all = ARGV[1], ARGV[2], ARGV[3] == '1'
local first_channel = 4

local now = now_ms()
local is_known = redis.call('EXISTS', reader_counts)
if is_known == 0 or lists_all then redis.call('DEL', reader_counts) end
-- Keeps the hash when no channel has readers; no channel has an empty name
redis.call('HSET', reader_counts, '', '1')
-- One by one: there may be more channels than Lua passes as arguments
for i = first_channel, #ARGV, 2 do
  if ARGV[i + 1] == '0' then
    redis.call('HDEL', reader_counts, ARGV[i])
  else
    redis.call('HSET', reader_counts, ARGV[i], ARGV[i + 1])
  end
end
redis.call('PEXPIRE', reader_counts, ttl_ms)
redis.call('ZADD', gateways, now, gateway)
-- Times that are still to come are from before the clock was set back: live gateways report again
redis.call('ZREMRANGEBYSCORE', gateways, string.format('(%.0f', now), '+inf')
redis.call('ZREMRANGEBYSCORE', gateways, '-inf', now - tonumber(ttl_ms))
redis.call('PEXPIRE', gateways, ttl_ms)
return is_known
