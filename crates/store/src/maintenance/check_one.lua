#!lua flags=allow-oom
-- Looks whether one place says the same of a job as its record does, and mends it if that neither loses nor doubles a job.
-- KEYS: 1 record, 2 result, 3 due, 4 pending, 5 timers, 6 stats, 7 lane, 8 lanes, 9 held, 10 limit, 11 active, 12 leases,
--       13 stream that the record names, 14 stream of the entry or attempt that is looked at
-- ARGV: 1 what is looked at: "record", or the member of "due", "pending", "key_queue", "admitted", "expire" (of timers), or an
--       "entry", or an "attempt" by its member, 2 "1" to mend, 3 id, 4 key of the limit or "", 5 state, 6 priority and
--       7 entry that the record named when the caller looked, or "", 8 entry, 9 member, 10 "1" when the entry says that
--       the job has a record
-- Returns {kind, 1 if it was mended, else 0}, or {} when nothing is wrong or the job has moved meanwhile.
-- May run twice: the second run finds nothing wrong.
local record_key, result, due, pending, timers, stats = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local key_queue, waiting_keys, admitted, limit, active = KEYS[7], KEYS[8], KEYS[9], KEYS[10], KEYS[11]
local leases, named_stream, stream = KEYS[12], KEYS[13], KEYS[14]
local what, repair, id, key, known_state, known_priority = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local known_entry, entry, member, has_record_marker = ARGV[7], ARGV[8], ARGV[9], ARGV[10]

local mend = repair == '1'
-- An attempt tells nothing of the job's id
local record = what == 'attempt' and {} or redis.call('HMGET', record_key, 's', 'p', 'x', 'd', 'e', 'l')
local state = record[1]
if what ~= 'attempt' then
  local known = { known_state, known_priority, known_entry }
  for i = 1, 3 do
    if (record[i] or '') ~= known[i] then return {} end
  end
end
local parked_in = { scheduled = due, retryable = due, pending = pending, key_waiting = key_queue }

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
    local item = redis.call('XRANGE', named_stream, known_entry, known_entry)[1]
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

-- An attempt that nobody can end any more: its lease is over, and the maintenance hands the job on
local function expire_lease()
  redis.call('HSETNX', active, member, string.format('lost %d 0 0 ', now_ms()))
  redis.call('ZADD', leases, now_ms(), member)
end

if what == 'due' or what == 'pending' or what == 'key_queue' then
  local set = ({ due = due, pending = pending, key_queue = key_queue })[what]
  if not redis.call('ZSCORE', set, id) then return {} end
  if state and parked_in[state] == set and (what ~= 'key_queue' or string.match(record[6] or '', '^%S+') == key) then
    if what ~= 'key_queue' or redis.call('SISMEMBER', waiting_keys, key) == 1 then return {} end
    return found('lane_unlisted', true, function()
      redis.call('SADD', waiting_keys, key)
      redis.call('ZADD', timers, now_ms(), 'key ' .. key)
    end)
  end
  return violation(state and 'member_elsewhere' or 'member_without_record', true, function()
    redis.call('ZREM', set, id)
    if what == 'key_queue' then redis.call('HINCRBY', stats, 'key_waiting', -1) end
  end)
end

if what == 'admitted' then
  if not redis.call('ZSCORE', admitted, id) or (state == 'queued' and is_placed()) then return {} end
  return found('held_without_entry', true, function()
    redis.call('ZREM', admitted, id)
    redis.call('ZADD', timers, now_ms(), 'key ' .. key)
  end)
end

if what == 'expire' then
  if state or not redis.call('ZSCORE', timers, 'expire ' .. id) then return {} end
  return found('timer_of_ended', true, function() redis.call('ZREM', timers, 'expire ' .. id) end)
end

if checked == 'record' then
  if not state then return {} end
  if redis.call('EXISTS', result) == 1 then
    return found('record_of_ended', not is_placed(), function() redis.call('DEL', record_key) end)
  end
  if is_placed() then return {} end
  -- What a job in a stream needs is in its entry alone
  if state == 'queued' then return found('record_without_entry', false) end
  local can_park = parked_in[state] and record[5] and (parked_in[state] ~= due or tonumber(record[4] or ''))
  return found('record_without_place', can_park and (state ~= 'key_waiting' or key ~= ''), function()
    if state == 'key_waiting' then
      enqueue_for_key(key_queue, waiting_keys, limit, timers, stats, id, record[2], key,
        string.match(record[6] or '', ' (.+)$') or '', now_ms())
    else
      redis.call('ZADD', parked_in[state], state == 'pending' and now_ms() or due_at, id)
    end
  end)
end

local consumer = consumer_of(stream, entry)
local has_attempt = redis.call('HEXISTS', active, member) == 1
local has_lease = redis.call('ZSCORE', leases, member)
if what == 'attempt' then
  if not has_attempt and not has_lease then return {} end
  if not consumer then
    return found('attempt_without_entry', true, function()
      redis.call('HDEL', active, member, 'p:' .. member)
      redis.call('ZREM', leases, member)
    end)
  end
  if has_attempt then return {} end
  return found('lease_without_attempt', true, function()
    if consumer == 'pull' then expire_lease() else redis.call('ZREM', leases, member) end
  end)
end

if #redis.call('XRANGE', stream, entry, entry) == 0 then return {} end
local function drop() redis.call('XDEL', stream, entry) end
local function note()
  redis.call('HSET', record_key, 's', 'queued', 'p', string.match(member, '^(.*):'), 'x', entry)
end
-- One that runs is let be: its end is fenced
if redis.call('EXISTS', result) == 1 then return found('entry_of_ended', not consumer, drop) end
if not state and has_record_marker == '1' then return found('entry_without_record', true, note) end
if state and not (state == 'queued' and known_priority .. ':' .. known_entry == member) then
  if state == 'queued' and not is_placed() then return found('entry_elsewhere', true, note) end
  return found('entry_elsewhere', not consumer and is_placed(), drop)
end
if consumer == 'pull' and not has_lease then return found('attempt_without_lease', true, expire_lease) end
return {}
