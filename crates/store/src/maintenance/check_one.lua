#!lua flags=allow-oom
-- Checks whether one place says the same of a job as the job's record does. Repairs it if that can neither lose nor
-- duplicate a job.
-- KEYS: 1 record, 2 result, 3 due, 4 pending, 5 timers, 6 stats, 7 key queue, 8 waiting keys, 9 admitted, 10 limit of
--       the key, 11 active, 12 leases, 13 stream that the record names, 14 stream of the checked entry or attempt
-- ARGV: 1 what to check: "record", a member of "due", "pending", "key_queue", "admitted" or "expire" (timers), an
--       "entry", or an "attempt", 2 "1" to repair, 3 id, 4 key of the limit or "", 5 state, 6 priority and 7 entry that
--       the record named when the caller read it, or "", 8 entry, 9 name of the attempt, 10 "1" when the entry says
--       that the job has a record, 11 notification channel, 12 notification (due)
-- Returns {kind of violation, 1 if it was repaired else 0}, or {} when nothing is wrong or the job has moved meanwhile.
-- May run twice: the second run finds nothing wrong.
local record, result, due, pending, timers, stats = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local key_queue, waiting_keys, admitted, limit, active = KEYS[7], KEYS[8], KEYS[9], KEYS[10], KEYS[11]
local leases, record_stream, entry_stream = KEYS[12], KEYS[13], KEYS[14]
local checked, may_repair, id, key = ARGV[1], ARGV[2] == '1', ARGV[3], ARGV[4]
local seen_state, seen_priority, seen_entry = ARGV[5], ARGV[6], ARGV[7]
local entry, attempt_name, says_record = ARGV[8], ARGV[9], ARGV[10] == '1'
local leader = { notifications = ARGV[11], notification = ARGV[12] }

-- An attempt does not name the id of its job
local fields = checked == 'attempt' and {} or redis.call('HMGET', record, 's', 'p', 'x', 'd', 'e', 'l')
local state, priority, due_at, envelope, key_limit = fields[1], fields[2], fields[4], fields[5], fields[6] or ''
if checked ~= 'attempt' then
  local has_moved = (state or '') ~= seen_state or (priority or '') ~= seen_priority or (fields[3] or '') ~= seen_entry
  if has_moved then return {} end
end
local parked_in = { scheduled = due, retryable = due, pending = pending, key_waiting = key_queue }

local function violation(kind, is_repairable, repair)
  local is_repaired = may_repair and is_repairable
  if is_repaired then repair() end
  return { kind, is_repaired and 1 or 0 }
end

-- Whether the job is where its record says
local function is_in_place()
  if state == 'queued' then
    local item = redis.call('XRANGE', record_stream, seen_entry, seen_entry)[1]
    for i = 1, item and #item[2] or 0, 2 do
      if item[2][i] == 'i' then return item[2][i + 1] == id or #item[2][i + 1] < 36 end
    end
    return false
  end
  return parked_in[state] and redis.call('ZSCORE', parked_in[state], id)
end

local function consumer_of(stream, stream_entry)
  local found = redis.pcall('XPENDING', stream, 'workers', stream_entry, stream_entry, 1)
  return not found.err and #found == 1 and found[1][2] or nil
end

-- Expires the lease of an attempt that no worker can end any more: maintenance then retries the job
local function expire_lease()
  redis.call('HSETNX', active, attempt_name, string.format('lost %d 0 0 ', now_ms()))
  set_due(leases, attempt_name, now_ms(), leader.notifications, leader.notification)
end

-- Has maintenance check soon whether the limit admits another job of the key
local function check_key_now()
  set_due(timers, 'key ' .. key, now_ms(), leader.notifications, leader.notification)
end

if checked == 'due' or checked == 'pending' or checked == 'key_queue' then
  local set = ({ due = due, pending = pending, key_queue = key_queue })[checked]
  if not redis.call('ZSCORE', set, id) then return {} end
  if state and parked_in[state] == set and (checked ~= 'key_queue' or string.match(key_limit, '^%S+') == key) then
    if checked ~= 'key_queue' or redis.call('SISMEMBER', waiting_keys, key) == 1 then return {} end
    return violation('key_queue_unlisted', true, function()
      redis.call('SADD', waiting_keys, key)
      check_key_now()
    end)
  end
  return violation(state and 'member_elsewhere' or 'member_without_record', true, function()
    redis.call('ZREM', set, id)
    if checked == 'key_queue' then redis.call('HINCRBY', stats, 'key_waiting', -1) end
  end)
end

if checked == 'admitted' then
  if not redis.call('ZSCORE', admitted, id) or (state == 'queued' and is_in_place()) then return {} end
  return violation('admitted_without_entry', true, function()
    redis.call('ZREM', admitted, id)
    check_key_now()
  end)
end

if checked == 'expire' then
  local timer = 'expire ' .. id
  if state or not redis.call('ZSCORE', timers, timer) then return {} end
  return violation('timer_of_ended', true, function() redis.call('ZREM', timers, timer) end)
end

if checked == 'record' then
  if not state then return {} end
  if redis.call('EXISTS', result) == 1 then
    return violation('record_of_ended', not is_in_place(), function() redis.call('DEL', record) end)
  end
  if is_in_place() then return {} end
  -- Only the entry holds what a job in a stream needs
  if state == 'queued' then return violation('record_without_entry', false) end
  local can_park = parked_in[state] and envelope and (parked_in[state] ~= due or tonumber(due_at or ''))
  return violation('record_without_place', can_park and (state ~= 'key_waiting' or key ~= ''), function()
    if state == 'key_waiting' then
      local policy = string.match(key_limit, ' (.+)$') or ''
      enqueue_for_key(key_queue, waiting_keys, limit, timers, stats, id, priority, key, policy, leader)
    elseif state == 'pending' then
      redis.call('ZADD', pending, now_ms(), id)
    else
      set_due(due, id, tonumber(due_at), leader.notifications, leader.notification)
    end
  end)
end

local consumer = consumer_of(entry_stream, entry)
local has_attempt = redis.call('HEXISTS', active, attempt_name) == 1
local has_lease = redis.call('ZSCORE', leases, attempt_name)
if checked == 'attempt' then
  if not has_attempt and not has_lease then return {} end
  if not consumer then
    return violation('attempt_without_entry', true, function()
      redis.call('HDEL', active, attempt_name, 'p:' .. attempt_name)
      redis.call('ZREM', leases, attempt_name)
    end)
  end
  if has_attempt then return {} end
  return violation('lease_without_attempt', true, function()
    if consumer == 'pull' then expire_lease() else redis.call('ZREM', leases, attempt_name) end
  end)
end

if #redis.call('XRANGE', entry_stream, entry, entry) == 0 then return {} end
local function delete_entry() redis.call('XDEL', entry_stream, entry) end
local function record_entry()
  redis.call('HSET', record, 's', 'queued', 'p', string.match(attempt_name, '^(.*):'), 'x', entry)
end
-- An entry that a worker runs stays: the fence stops its end
if redis.call('EXISTS', result) == 1 then return violation('entry_of_ended', not consumer, delete_entry) end
if not state and says_record then return violation('entry_without_record', true, record_entry) end
if state and not (state == 'queued' and seen_priority .. ':' .. seen_entry == attempt_name) then
  if state == 'queued' and not is_in_place() then return violation('entry_elsewhere', true, record_entry) end
  return violation('entry_elsewhere', not consumer and is_in_place(), delete_entry)
end
if consumer == 'pull' and not has_lease then return violation('attempt_without_lease', true, expire_lease) end
return {}
