#!lua
-- Adds a message to a channel's history and sends it to whoever listens.
-- KEYS: 1 history
-- ARGV: 1 channel, 2 body, 3 messages kept, about, 4 TTL in ms, 5.. further fields and values
-- Returns {position, listeners}.
-- Positions of a channel are <epoch>-0, <epoch>-1, ...: contiguous, so a gap can be seen. The epoch is the moment
-- the history began; one that begins again has a later one.
-- Twice means two messages: the caller does not repeat it.
local epoch
if redis.call('EXISTS', KEYS[1]) == 1 then
  local info = redis.call('XINFO', 'STREAM', KEYS[1])
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then epoch = string.match(info[i + 1], '^(%d+)%-') end
  end
else
  epoch = string.format('%d', now_ms())
end
local position = redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[3], epoch .. '-*', 'b', ARGV[2], unpack(ARGV, 5))
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return { position, redis.call('PUBLISH', ARGV[1], ARGV[2]) }
