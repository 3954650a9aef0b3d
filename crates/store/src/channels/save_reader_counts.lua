#!lua
-- Notes how many read which channels at a gateway.
-- KEYS: 1 its readers, 2 gateways
-- ARGV: 1 gateway, 2 how long that counts in ms, 3 1 if these are all channels, 4.. channels and how many read them
-- Returns 1 if something was noted before that still counts, else 0: then all channels are to be noted.
-- May run twice: it says the same again.
local readers, gateways = KEYS[1], KEYS[2]
local gateway, ttl_ms, is_complete = ARGV[1], ARGV[2], ARGV[3] == '1'
local FIRST_CHANNEL = 4

local now = now_ms()
local is_known = redis.call('EXISTS', readers)
if is_known == 0 or is_complete then redis.call('DEL', readers) end
-- No channel has that name
redis.call('HSET', readers, '', '1')
-- One by one: there may be more than Lua passes on at once
for i = FIRST_CHANNEL, #ARGV, 2 do
  if ARGV[i + 1] == '0' then
    redis.call('HDEL', readers, ARGV[i])
  else
    redis.call('HSET', readers, ARGV[i], ARGV[i + 1])
  end
end
redis.call('PEXPIRE', readers, ttl_ms)
redis.call('ZADD', gateways, now, gateway)
redis.call('ZREMRANGEBYSCORE', gateways, '-inf', now - ttl_ms)
redis.call('PEXPIRE', gateways, ttl_ms)
return is_known
