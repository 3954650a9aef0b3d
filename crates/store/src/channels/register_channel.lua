#!lua
-- Puts a channel on the list of those there are, or notes that it is still in use.
-- KEYS: 1 channels
-- ARGV: 1 name, 2 channels that there may be, 3 a channel is gone this long after it was last noted, in ms
-- Returns 1, or 0 if there are too many.
-- May run twice: a name is on the list once.
local now = now_ms()
local is_known = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not is_known and redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[2]) then
  redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - tonumber(ARGV[3]))
  if redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[2]) then return 0 end
end
redis.call('ZADD', KEYS[1], now, ARGV[1])
if not is_known then redis.call('PUBLISH', KEYS[1], ARGV[1]) end
return 1
