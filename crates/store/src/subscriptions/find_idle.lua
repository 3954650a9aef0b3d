#!lua flags=no-writes
-- Which channels have messages of a subscription that are handed out to workers who have been silent.
-- KEYS: histories
-- ARGV: 1 group, 2 least silence in ms, 3 whose they are, or '' for anybody's
-- Returns the numbers of those histories, from 1.
-- May run twice: it only reads.
local group, min_idle_ms, worker = ARGV[1], ARGV[2], ARGV[3]

local found = {}
for number = 1, #KEYS do
  local arguments = { group, 'IDLE', min_idle_ms, '-', '+', 1 }
  if worker ~= '' then arguments[#arguments + 1] = worker end
  local waiting = redis.pcall('XPENDING', KEYS[number], unpack(arguments))
  if waiting.err then
    if not string.find(waiting.err, 'NOGROUP', 1, true) then return redis.error_reply(waiting.err) end
  elseif #waiting > 0 then
    found[#found + 1] = number
  end
end
return found
