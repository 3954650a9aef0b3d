-- Moves sums from the stream of flushes to the histories of queues.
-- KEYS: 1 flushes, 2 queues with a history, 3.. the history of each sum
-- ARGV: 1 first entry of the stream, 2 the id after the last entry to remove, 3 time in ms, 4 TTL of a history in ms,
--       5.. for each sum its series, its field, and the bytes to append
-- Returns 1, or 0 when the stream begins with another entry: somebody else folded it.
-- May run twice: the second run finds another first entry.
local flushes, queues = KEYS[1], KEYS[2]
local first_history = 3
local first_entry, next_entry, now, ttl_ms = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local first_sum = 5

local found = redis.call('XRANGE', flushes, '-', '+', 'COUNT', 1)
if #found == 0 or found[1][1] ~= first_entry then return 0 end
redis.call('ZCARD', queues)
for i = first_history, #KEYS do redis.call('HLEN', KEYS[i]) end

for i = first_history, #KEYS do
  local sum = first_sum + 3 * (i - first_history)
  local series, field, bytes = ARGV[sum], ARGV[sum + 1], ARGV[sum + 2]
  redis.call('HSET', KEYS[i], field, (redis.call('HGET', KEYS[i], field) or '') .. bytes)
  redis.call('PEXPIRE', KEYS[i], ttl_ms)
  redis.call('ZADD', queues, now, series)
end
redis.call('XTRIM', flushes, 'MINID', next_entry)
return 1
