#!lua flags=allow-oom
-- Deletes the consumers of workers that are gone and have no pending messages.
-- KEYS: 1 stream
-- ARGV: 1 silent for at least ms, 2 most to forget, 3 group
-- Returns how many were forgotten.
-- May run twice; a worker that was forgotten too early is known again when it reads.
local stream = KEYS[1]
local min_idle_ms, max_consumers, group = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]

local consumers = redis.pcall('XINFO', 'CONSUMERS', stream, group)
if consumers.err then return 0 end
local deleted = 0
for _, consumer in ipairs(consumers) do
  local fields = {}
  for i = 1, #consumer, 2 do fields[consumer[i]] = consumer[i + 1] end
  -- Deleting a consumer drops what it holds, so only one that holds nothing, seen in the same moment
  if fields.pending == 0 and fields.idle >= min_idle_ms and forgotten < max_consumers then
    redis.call('XGROUP', 'DELCONSUMER', stream, group, fields.name)
    forgotten = forgotten + 1
  end
end
return deleted
