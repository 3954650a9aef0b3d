#!lua flags=allow-oom
-- Completes many jobs that a queue-worker ran: stores their results and removes their entries.
-- KEYS: 1 stream, 2 active, 3 leases, 4 stats, 5 note of this call, 6.. the result of each job, then the records of the
--       jobs that have one
-- ARGV: 1 consumer, 2 priority, 3 TTL of a result in ms, or 0 when Redis is too full to store results, 4 TTL of the note
--       in ms, 5 channel of finished jobs, 6 ids of the jobs, separated by spaces,
--       7.. the entry of each job, then the result of each job as text
-- Returns for each job 1 completed, 2 completed by an earlier run of this call, 0 no longer this worker's attempt.
-- The fence is the entry: whatever takes a job away from an attempt deletes the attempt's entry, except that an attempt may
-- be handed over to the holder of a token.
-- May run twice: the second run finds the results of the first, or its note when it stored none.
local stream, active, leases, stats, note = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local first_result = 6
local consumer, priority, result_ttl_ms, note_ttl_ms = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local finished, ids = ARGV[5], ARGV[6]
local first_entry = 7

local job_count = (#ARGV - first_entry + 1) / 2
local first_text, first_record = first_entry + job_count, first_result + job_count
local outcomes, entries = {}, {}
for number = 1, job_count do entries[number] = ARGV[first_entry + number - 1] end

-- Most attempts are not in the active hash: they have no lease of their own, no token and no progress
local attempts
if redis.call('HLEN', active) > 0 then
  attempts = {}
  for number = 1, job_count do attempts[number] = priority .. ':' .. entries[number] end
  local still_own = {}
  for number, attempt in ipairs(redis.call('HMGET', active, unpack(attempts))) do
    local entry, token = entries[number], attempt and string.match(attempt, '^%S+') or '-'
    local is_own = token == '-' or #redis.pcall('XPENDING', stream, 'workers', entry, entry, 1, consumer) == 1
    if is_own then still_own[#still_own + 1] = entry else outcomes[number] = 0 end
  end
  entries = still_own
end

-- What ended the attempt of an entry that is gone: this call, when its answer was lost, or something else.
local function earlier_outcome(number)
  local attempt_name = priority .. ':' .. ARGV[first_entry + number - 1]
  local text = redis.call('GETRANGE', KEYS[first_result + number - 1], 0, #attempt_name)
  if text == attempt_name .. '\n' or redis.call('EXISTS', note) == 1 then return 2 end
  return 0
end

if #entries == 0 then return outcomes end
local done = #entries
if redis.call('XACK', stream, 'workers', unpack(entries)) < #entries then
  for number = 1, job_count do
    local entry = ARGV[first_entry + number - 1]
    if not outcomes[number] and #redis.call('XRANGE', stream, entry, entry) == 0 then
      outcomes[number] = earlier_outcome(number)
      done = done - 1
    end
  end
end
if done == 0 then return outcomes end

for number = 1, job_count do
  if not outcomes[number] then
    outcomes[number] = 1
    if result_ttl_ms ~= '0' then
      redis.call('SET', KEYS[first_result + number - 1], ARGV[first_text + number - 1], 'PX', result_ttl_ms)
    end
  end
end
if result_ttl_ms == '0' then redis.call('SET', note, '', 'PX', note_ttl_ms) end
redis.call('XDEL', stream, unpack(entries))
if attempts then
  local gone = {}
  for number = 1, job_count do
    if outcomes[number] == 1 then
      gone[#gone + 1] = attempts[number]
      gone[#gone + 1] = 'p:' .. attempts[number]
    end
  end
  redis.call('HDEL', active, unpack(gone))
  redis.call('ZREM', leases, unpack(gone))
end
if first_record <= #KEYS then
  -- A result and a record of the same job end with its id
  local is_completed = {}
  for number = 1, job_count do
    is_completed[string.sub(KEYS[first_result + number - 1], -36)] = outcomes[number] == 1
  end
  local records = {}
  for number = first_record, #KEYS do
    if is_completed[string.sub(KEYS[number], -36)] then records[#records + 1] = KEYS[number] end
  end
  if #records > 0 then redis.call('DEL', unpack(records)) end
end
redis.call('HINCRBY', stats, 'completed', done)
redis.pcall('PUBLISH', finished, ids)
return outcomes
