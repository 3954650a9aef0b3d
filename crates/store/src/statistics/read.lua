#!lua flags=no-writes,allow-oom
-- Reads histories, and the sums that are not in them yet, at one moment.
-- KEYS: 1 flushes, 2.. histories
-- ARGV: fields of each history
-- Returns the entries of the stream, then for each history the values of its fields.
-- May run twice: it only reads.
local flushes = KEYS[1]
local first_history = 2
local first_field = 1

local answer = { redis.call('XRANGE', flushes, '-', '+') }
for i = first_history, #KEYS do
  answer[#answer + 1] = redis.call('HMGET', KEYS[i], unpack(ARGV, first_field))
end
return answer
