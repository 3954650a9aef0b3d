#!lua flags=allow-oom
-- Looks whether one place says the same of a job as its record does, and mends it if that neither loses nor doubles a job.
-- KEYS: 1 record, 2 result, 3 due, 4 pending, 5 timers, 6 stats, 7 lane, 8 lanes, 9 held, 10 limit, 11 active, 12 leases,
--       13 stream that the record names, 14 stream of the entry or attempt that is looked at
-- ARGV: 1 what is looked at: "record", or the member of "due", "pending", "lane", "held", "expire" (of timers), or an
--       "entry", or an "attempt" by its member, 2 "1" to mend, 3 id, 4 key of the limit or "", 5 state, 6 priority and
--       7 entry that the record named when the caller looked, or "", 8 entry, 9 member, 10 "1" when the entry says that
--       the job has a record
-- Returns {kind, 1 if it was mended, else 0}, or {} when nothing is wrong or the job has moved meanwhile.
-- May run twice: the second run finds nothing wrong.
local what, mend, id, key = ARGV[1], ARGV[2] == '1', ARGV[3], ARGV[4]
-- An attempt tells nothing of the job's id
local record = what == 'attempt' and {} or redis.call('HMGET', KEYS[1], 's', 'p', 'x', 'd', 'e', 'l')
local state = record[1]
if what ~= 'attempt' then
  for i = 1, 3 do
    if (record[i] or '') ~= ARGV[4 + i] then return {} end
  end
end
local parked_in = { scheduled = KEYS[3], retryable = KEYS[3], pending = KEYS[4], held = KEYS[7] }

local function found(kind, may_mend, how)
  if mend and may_mend then how() end
  return { kind, mend and may_mend and 1 or 0 }
end

-- Whether the place that the record names has the job
local function is_placed()
  if state == 'queued' then
    local item = redis.call('XRANGE', KEYS[13], ARGV[7], ARGV[7])[1]
    for i = 1, item and #item[2] or 0, 2 do
      if item[2][i] == 'i' then return item[2][i + 1] == id or #item[2][i + 1] < 36 end
    end
    return false
  end
  return parked_in[state] and redis.call('ZSCORE', parked_in[state], id)
end

local function consumer_of(stream, entry)
  local pending = redis.pcall('XPENDING', stream, 'workers', entry, entry, 1)
  return not pending.err and #pending == 1 and pending[1][2] or nil
end

-- An attempt that nobody can end any more: its lease is over, and the upkeep hands the job on
local function let_lapse()
  redis.call('HSETNX', KEYS[11], ARGV[9], string.format('lost %d 0 0 ', now_ms()))
  redis.call('ZADD', KEYS[12], now_ms(), ARGV[9])
end

if what == 'due' or what == 'pending' or what == 'lane' then
  local set = ({ due = KEYS[3], pending = KEYS[4], lane = KEYS[7] })[what]
  if not redis.call('ZSCORE', set, id) then return {} end
  if state and parked_in[state] == set and (what ~= 'lane' or string.match(record[6] or '', '^%S+') == key) then
    if what ~= 'lane' or redis.call('SISMEMBER', KEYS[8], key) == 1 then return {} end
    return found('lane_unlisted', true, function()
      redis.call('SADD', KEYS[8], key)
      redis.call('ZADD', KEYS[5], now_ms(), 'lane ' .. key)
    end)
  end
  return found(state and 'member_elsewhere' or 'member_without_record', true, function()
    redis.call('ZREM', set, id)
    if what == 'lane' then redis.call('HINCRBY', KEYS[6], 'laned', -1) end
  end)
end

if what == 'held' then
  if not redis.call('ZSCORE', KEYS[9], id) or (state == 'queued' and is_placed()) then return {} end
  return found('held_without_entry', true, function()
    redis.call('ZREM', KEYS[9], id)
    redis.call('ZADD', KEYS[5], now_ms(), 'lane ' .. key)
  end)
end

if what == 'expire' then
  if state or not redis.call('ZSCORE', KEYS[5], 'expire ' .. id) then return {} end
  return found('timer_of_ended', true, function() redis.call('ZREM', KEYS[5], 'expire ' .. id) end)
end

if what == 'record' then
  if not state then return {} end
  if redis.call('EXISTS', KEYS[2]) == 1 then
    return found('record_of_ended', not is_placed(), function() redis.call('DEL', KEYS[1]) end)
  end
  if is_placed() then return {} end
  -- What a job in a stream needs is in its entry alone
  if state == 'queued' then return found('record_without_entry', false) end
  local can_park = parked_in[state] and record[5] and (parked_in[state] ~= KEYS[3] or tonumber(record[4] or ''))
  return found('record_without_place', can_park and (state ~= 'held' or key ~= ''), function()
    if state == 'held' then
      line_up(KEYS[7], KEYS[8], KEYS[10], KEYS[5], KEYS[6], id, record[2], key,
        string.match(record[6] or '', ' (.+)$') or '', now_ms())
    else
      redis.call('ZADD', parked_in[state], state == 'pending' and now_ms() or record[4], id)
    end
  end)
end

local consumer = consumer_of(KEYS[14], ARGV[8])
local has_attempt = redis.call('HEXISTS', KEYS[11], ARGV[9]) == 1
local has_lease = redis.call('ZSCORE', KEYS[12], ARGV[9])
if what == 'attempt' then
  if not has_attempt and not has_lease then return {} end
  if not consumer then
    return found('attempt_without_entry', true, function()
      redis.call('HDEL', KEYS[11], ARGV[9], 'p:' .. ARGV[9])
      redis.call('ZREM', KEYS[12], ARGV[9])
    end)
  end
  if has_attempt then return {} end
  return found('lease_without_attempt', true, function()
    if consumer == 'pull' then let_lapse() else redis.call('ZREM', KEYS[12], ARGV[9]) end
  end)
end

if #redis.call('XRANGE', KEYS[14], ARGV[8], ARGV[8]) == 0 then return {} end
local function drop() redis.call('XDEL', KEYS[14], ARGV[8]) end
local function note()
  redis.call('HSET', KEYS[1], 's', 'queued', 'p', string.match(ARGV[9], '^(.*):'), 'x', ARGV[8])
end
-- One that runs is let be: its end is fenced
if redis.call('EXISTS', KEYS[2]) == 1 then return found('entry_of_ended', not consumer, drop) end
if not state and ARGV[10] == '1' then return found('entry_without_record', true, note) end
if state and not (state == 'queued' and ARGV[6] .. ':' .. ARGV[7] == ARGV[9]) then
  if state == 'queued' and not is_placed() then return found('entry_elsewhere', true, note) end
  return found('entry_elsewhere', not consumer and is_placed(), drop)
end
if consumer == 'pull' and not has_lease then return found('attempt_without_lease', true, let_lapse) end
return {}
