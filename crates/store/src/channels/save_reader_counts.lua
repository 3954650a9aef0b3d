#!lua flags=allow-oom
-- Saves how many readers each channel has at one gateway.
-- KEYS: 1 reader counts of the gateway
-- ARGV: 1 TTL in ms, 2 "1" if the call lists all channels, 3.. channels and their number of readers
-- Returns 1 if the gateway's earlier counts still exist, else 0: then the next call must list all channels.
-- May run twice: it saves the same counts again.
local reader_counts = KEYS[1]
local ttl_ms, lists_all = ARGV[1], ARGV[2] == '1'
local first_channel = 3

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
return is_known
