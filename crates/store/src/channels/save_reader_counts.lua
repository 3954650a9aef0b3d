#!lua
-- Notes how many read which channels at a gateway.
-- KEYS: 1 its readers, 2 gateways
-- ARGV: 1 gateway, 2 how long that counts in ms, 3 1 if these are all channels, 4.. channels and how many read them
-- Returns 1 if something was noted before that still counts, else 0: then all channels are to be noted.
-- May run twice: it says the same again.
local now = now_ms()
local is_known = redis.call('EXISTS', KEYS[1])
if is_known == 0 or ARGV[3] == '1' then redis.call('DEL', KEYS[1]) end
-- No channel has that name
redis.call('HSET', KEYS[1], '', '1')
-- One by one: there may be more than Lua passes on at once
for i = 4, #ARGV, 2 do
  if ARGV[i + 1] == '0' then
    redis.call('HDEL', KEYS[1], ARGV[i])
  else
    redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
  end
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
redis.call('ZADD', KEYS[2], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now - tonumber(ARGV[2]))
redis.call('PEXPIRE', KEYS[2], ARGV[2])
return is_known
