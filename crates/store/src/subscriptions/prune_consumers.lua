#!lua flags=allow-oom
-- Deletes the consumers of workers that are gone and have no pending messages.
-- KEYS: 1 stream
-- ARGV: 1 min idle time in ms, 2 max consumers to delete, 3 group
-- Returns how many were deleted.
-- May run twice: it deletes idle consumers only. A worker whose consumer was deleted too early gets a new one at its
-- next read.
local stream = KEYS[1]
local min_idle_ms, max_deleted, group = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]

local consumers = redis.pcall('XINFO', 'CONSUMERS', stream, group)
if consumers.err then return 0 end
local deleted = 0
for _, consumer in ipairs(consumers) do
  local fields = {}
  for i = 1, #consumer, 2 do fields[consumer[i]] = consumer[i + 1] end
  -- DELCONSUMER drops pending entries, so the script checks in the same moment that there are none
  if fields.pending == 0 and fields.idle >= min_idle_ms and deleted < max_deleted then
    redis.call('XGROUP', 'DELCONSUMER', stream, group, fields.name)
    deleted = deleted + 1
  end
end
return deleted
