#!lua
-- Puts a channel on the list of those there are, or notes that it is still in use.
-- KEYS: 1 channels
-- ARGV: 1 name, 2 channels that there may be, 3 a channel is gone this long after it was last noted, in ms
-- Returns 1, or 0 if there are too many.
-- May run twice: a name is on the list once.
local channels = KEYS[1]
local name, max_channels, ttl_ms = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])

local now = now_ms()
local is_known = redis.call('ZSCORE', channels, name)
if not is_known and redis.call('ZCARD', channels) >= max_channels then
  redis.call('ZREMRANGEBYSCORE', channels, '-inf', now - ttl_ms)
  if redis.call('ZCARD', channels) >= max_channels then return 0 end
end
redis.call('ZADD', channels, now, name)
if not is_known then redis.call('PUBLISH', channels, name) end
return 1
