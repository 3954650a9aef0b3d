#!lua flags=allow-oom
-- Completes many jobs that a queue-worker ran: stores their results and removes their entries.
-- KEYS: 1 stream, 2 active, 3 leases, 4 stats, 5.. the result of each job, then the records of the jobs that have one
-- ARGV: 1 consumer, 2 lowest entry, 3 highest entry, 4 max entries that the consumer can have in between, 5 priority,
--       6 TTL of a result in ms, 7 channel of finished jobs,
--       8.. for each job its entry, its result as text, and the number of its record among the records, or 0
-- Returns for each job 1 completed, 2 completed by an earlier run of this call, 0 no longer this worker's attempt.
-- May run twice: the second run finds its own results.
local stream, active, leases, stats = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local first_result = 5
local consumer, lowest_entry, highest_entry, max_entries = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local priority, result_ttl_ms, finished = ARGV[5], ARGV[6], ARGV[7]
local first_job = 8

local job_count = (#ARGV - first_job + 1) / 3
local first_record = first_result + job_count
local is_own = {}
local pending = redis.pcall('XPENDING', stream, 'workers', lowest_entry, highest_entry, max_entries, consumer)
if not pending.err then
  for _, item in ipairs(pending) do is_own[item[1]] = true end
end
local outcomes, entries, attempt_names, progress_fields, records, ids = {}, {}, {}, {}, {}, {}
for number = 1, job_count do
  local at = first_job + (number - 1) * 3
  local entry, result_text, record_number = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2])
  local result = KEYS[first_result + number - 1]
  local attempt_name = priority .. ':' .. entry
  -- Entries that the caller does not know may have used up max_entries: then each entry is looked up alone
  if not is_own[entry] and not pending.err then
    local one = redis.call('XPENDING', stream, 'workers', entry, entry, 1, consumer)
    is_own[entry] = #one == 1 or nil
  end
  if is_own[entry] then
    outcomes[number] = 1
    is_own[entry] = nil
    entries[#entries + 1] = entry
    attempt_names[#attempt_names + 1] = attempt_name
    progress_fields[#progress_fields + 1] = 'p:' .. attempt_name
    ids[#ids + 1] = string.sub(result, -36)
    if record_number > 0 then records[#records + 1] = KEYS[first_record + record_number - 1] end
    -- 0: Redis is too full to store results
    if result_ttl_ms ~= '0' then redis.call('SET', result, result_text, 'PX', result_ttl_ms) end
  elseif redis.call('GETRANGE', result, 0, #attempt_name) == attempt_name .. '\n' then
    outcomes[number] = 2
  else
    outcomes[number] = 0
  end
end
if #entries > 0 then
  redis.call('XACK', stream, 'workers', unpack(entries))
  redis.call('XDEL', stream, unpack(entries))
  redis.call('HDEL', active, unpack(attempt_names))
  redis.call('HDEL', active, unpack(progress_fields))
  redis.call('ZREM', leases, unpack(attempt_names))
  if #records > 0 then redis.call('DEL', unpack(records)) end
  redis.call('HINCRBY', stats, 'completed', #entries)
  redis.pcall('PUBLISH', finished, table.concat(ids, ' '))
end
return outcomes
