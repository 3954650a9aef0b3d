#!lua
-- Adds a channel to the registry, or notes that it is still in use.
-- KEYS: 1 channels
-- ARGV: 1 name, 2 max channels, 3 ms without use after which a channel no longer counts, 4 pub/sub channel that announces
--       new ones
-- Returns 1, or 0 when there are too many channels.
-- May run twice: a name is in the registry once.
local channels = KEYS[1]
local name, max_channels, max_unused_ms, new_channels = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]

local now = now_ms()
local is_known = redis.call('ZSCORE', channels, name)
if not is_known and redis.call('ZCARD', channels) >= max_channels then
  redis.call('ZREMRANGEBYSCORE', channels, '-inf', now - max_unused_ms)
  if redis.call('ZCARD', channels) >= max_channels then return 0 end
end
redis.call('ZADD', channels, now, name)
if not is_known then redis.pcall('PUBLISH', new_channels, name) end
return 1
