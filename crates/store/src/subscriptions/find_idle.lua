#!lua flags=no-writes
-- Finds the channels in which messages of a subscription are pending for idle workers.
-- KEYS: 1.. histories
-- ARGV: 1 group, 2 min idle time in ms, 3 consumer whose messages count, or '' for all consumers
-- Returns the numbers of those histories, from 1.
-- May run twice: it only reads.
local group, min_idle_ms, consumer = ARGV[1], ARGV[2], ARGV[3]
local first_history = 1

local found = {}
for number = first_history, #KEYS do
  local arguments = { group, 'IDLE', min_idle_ms, '-', '+', 1 }
  if consumer ~= '' then arguments[#arguments + 1] = consumer end
  local pending = redis.pcall('XPENDING', KEYS[number], unpack(arguments))
  if pending.err then
    if not string.find(pending.err, 'NOGROUP', 1, true) then return redis.error_reply(pending.err) end
  elseif #pending > 0 then
    found[#found + 1] = number
  end
end
return found
