#!lua flags=allow-oom
-- Completes many jobs that a queue-worker ran: stores their results, removes their entries and what they held.
-- KEYS: 1 stream, 2 active, 3 leases, 4 stats, 5 note of this call, 6 timers, 7 waiting keys, 8 index of completed
--       jobs, 9.. the result of each job, then the records, checkpoints and signals, the uniqueness keys and the sets of admitted jobs
--       of those jobs that have one
-- ARGV: 1 consumer, 2 priority, 3 TTL of a result in ms, or 0 when Redis is too full to store results, 4 TTL of what is
--       stored of jobs of workflows, 5 TTL of the note in ms, 6 channel of finished jobs, 7 ids of the jobs in base64,
--       8 notification channel, 9 notification (due), 10 number of jobs, 11 to 15 how many records, checkpoints and signals, a
--       uniqueness, a key, a deadline and a workflow they have, 16 most jobs in the index, 17 how many jobs have a chosen id, 18 TTL of what is
--       stored of them, 19.. the entry of each job, then the result of each job as text, or a note, or "" when nothing is
--       stored of it, then the numbers of the jobs with a record, a checkpoint or signals, a uniqueness, a key, a deadline, a workflow, a chosen id
-- Returns for each job 1 completed, 3 completed and others wait for its key, 2 completed by an earlier run of this call, 0
-- no longer this worker's attempt.
-- The fence is the entry: what takes a job away from an attempt also deletes the attempt's entry. Only the attempt itself can
-- hand its entry over, to the holder of a token.
-- May run twice: the second run finds the results of the first, or its note when it stored none.
local stream, active, leases, stats, note = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local timers, waiting_keys, index = KEYS[6], KEYS[7], KEYS[8]
local first_result = 9
local consumer, priority, result_ttl_ms, member_ttl_ms, note_ttl_ms = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local finished, short_ids, notifications, due_notification = ARGV[6], ARGV[7], ARGV[8], ARGV[9]
local job_count, record_count, unique_count = tonumber(ARGV[10]), tonumber(ARGV[11]), tonumber(ARGV[12])
local keyed_count, expiring_count, workflow_count = tonumber(ARGV[13]), tonumber(ARGV[14]), tonumber(ARGV[15])
local max_indexed, chosen_count, chosen_ttl_ms = tonumber(ARGV[16]), tonumber(ARGV[17]), ARGV[18]
local first_entry = 19

local first_text = first_entry + job_count
local first_number = first_text + job_count
local first_key = first_result + job_count
local outcomes, entries = {}, {}
for number = 1, job_count do entries[number] = ARGV[first_entry + number - 1] end

-- Nothing may fail after the first write: keys of a wrong type fail here
redis.call('HEXISTS', stats, 'completed')
if keyed_count + expiring_count + workflow_count > 0 then redis.call('ZCARD', timers) end
if keyed_count > 0 then redis.call('SCARD', waiting_keys) end

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
for number = 1, job_count do outcomes[number] = outcomes[number] or 1 end

-- Calls a function for each completed job of the next list of numbers, with the key that belongs to it, if they have keys.
local function for_completed(count, has_keys, visit)
  for i = 0, count - 1 do
    local number = tonumber(ARGV[first_number + i])
    if outcomes[number] == 1 then visit(number, has_keys and KEYS[first_key + i]) end
  end
  first_number = first_number + count
  if has_keys then first_key = first_key + count end
end

local function id_of(number) return string.sub(KEYS[first_result + number - 1], -36) end

local is_member = {}
local records = {}
for_completed(record_count, true, function(_, record) records[#records + 1] = record end)
if #records > 0 then redis.call('DEL', unpack(records)) end
for_completed(unique_count, true, function(number, uniqueness)
  if redis.pcall('GET', uniqueness) == id_of(number) then redis.call('DEL', uniqueness) end
end)
local now = now_ms()
local is_waited_for, is_timed = {}, {}
for_completed(keyed_count, true, function(number, admitted)
  if redis.pcall('ZREM', admitted, id_of(number)) ~= 1 then return end
  local key = string.match(admitted, ':admitted:(.+)$')
  if not is_timed[key] and redis.call('SISMEMBER', waiting_keys, key) == 0 then return end
  is_waited_for[number] = true
  if is_timed[key] then return end
  is_timed[key] = true
  -- The caller admits the next job of the key; the leader does if the caller dies
  set_due(timers, 'key ' .. key, now + 2000, notifications, due_notification, 'LT')
end)
for_completed(expiring_count, false, function(number) redis.call('ZREM', timers, 'expire ' .. id_of(number)) end)
local follow_ups = {}
for_completed(workflow_count, false, function(number)
  is_member[number] = true
  follow_ups[#follow_ups + 1] = 'follow_up ' .. id_of(number)
end)
local is_chosen = {}
for_completed(chosen_count, false, function(number) is_chosen[number] = true end)
set_all_due(timers, follow_ups, now + 2000, notifications, due_notification)

-- A moment costs Redis less than a duration, which it must convert for each key
local function expiry(ttl_ms) return ttl_ms ~= '0' and string.format('%.0f', now + ttl_ms) end
local result_expiry, member_expiry, chosen_expiry = expiry(result_ttl_ms), expiry(member_ttl_ms), expiry(chosen_ttl_ms)
for number = 1, job_count do
  if outcomes[number] == 1 then
    local expires_at = is_member[number] and member_expiry or is_chosen[number] and chosen_expiry or result_expiry
    if expires_at then
      redis.call('SET', KEYS[first_result + number - 1], ARGV[first_text + number - 1], 'PXAT', expires_at)
    end
    if is_waited_for[number] then outcomes[number] = 3 end
  end
end
if result_ttl_ms == '0' then redis.call('SET', note, '', 'PX', note_ttl_ms) end
redis.call('XDEL', stream, unpack(entries))
if attempts then
  local gone = {}
  for number = 1, job_count do
    if outcomes[number] % 2 == 1 then
      gone[#gone + 1] = attempts[number]
      gone[#gone + 1] = 'p:' .. attempts[number]
    end
  end
  redis.call('HDEL', active, unpack(gone))
  redis.call('ZREM', leases, unpack(gone))
end
local total = redis.call('HINCRBY', stats, 'completed', done)
if result_expiry then index_completed(index, total, done, max_indexed, now, short_ids, result_ttl_ms) end
local ids = {}
for number = 1, job_count do ids[number] = id_of(number) end
publish_topic(finished, table.concat(ids, ' '))
return outcomes
