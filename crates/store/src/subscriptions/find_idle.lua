#!lua flags=no-writes
-- Whether messages of a subscription are pending for idle workers in a channel.
-- KEYS: 1 history
-- ARGV: 1 group, 2 min idle time in ms, 3 consumer whose messages count, or '' for all consumers
-- Returns 1 if there are some, else 0.
-- May run twice: it only reads.
local history = KEYS[1]
local group, min_idle_ms, consumer = ARGV[1], ARGV[2], ARGV[3]

local arguments = { group, 'IDLE', min_idle_ms, '-', '+', 1 }
if consumer ~= '' then arguments[#arguments + 1] = consumer end
local pending = redis.pcall('XPENDING', history, unpack(arguments))
if pending.err then
  if not string.find(pending.err, 'NOGROUP', 1, true) then return redis.error_reply(pending.err) end
  return 0
end
return #pending > 0 and 1 or 0
