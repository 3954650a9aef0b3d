-- For scripts that make a job available.

-- Adds an entry to a stream. Creates the stream with its group, and lists its priority, if they are missing. A script that
-- adds many keeps the streams that it has seen in a table `opened`.
local function add_entry(stream, priorities, priority, notifications, notification, fields, opened)
  local is_new = false
  if not (opened and opened[stream]) then
    if redis.call('EXISTS', stream) == 0 then
      redis.call('XGROUP', 'CREATE', stream, 'workers', '0', 'MKSTREAM')
    end
    is_new = redis.call('SADD', priorities, priority) == 1
    if opened then opened[stream] = true end
  end
  local entry = redis.call('XADD', stream, '*', unpack(fields))
  if is_new then redis.pcall('PUBLISH', notifications, notification) end
  return entry
end

local only_in_records = { s = true, p = true, d = true, k = true, x = true, y = true, q = true }

-- The fields of the stream entry of a job that has a record; nil when there is no record.
local function entry_fields(id, record_fields)
  local fields = { 'i', id }
  for i = 1, #record_fields, 2 do
    if not only_in_records[record_fields[i]] then
      fields[#fields + 1] = record_fields[i]
      fields[#fields + 1] = record_fields[i + 1]
    end
  end
  if #fields == 2 then return nil end
  return fields
end

-- Reduces the record of a job that is in a stream now to its address: the entry holds everything else.
local function note_entry(record, priority, entry)
  redis.call('DEL', record)
  redis.call('HSET', record, 's', 'queued', 'p', priority, 'x', entry)
end

-- Notes the periods of a limit that a job brought, because its starts count for that long. The limit itself is the job's:
-- no job changes the limit of the others.
local function note_periods(limit, policy)
  local rate_ms, throttle_ms = string.match(policy, '^%-?%d+ %d+ (%d+) %d+ %d+ %d+ (%d+)$')
  if rate_ms then redis.call('HSET', limit, 'rp', rate_ms, 'tp', throttle_ms) end
end

-- How long the limit of a key without jobs is kept: its starts count for a period.
local function idle_limit_ttl(limit)
  local known = redis.call('HMGET', limit, 'rp', 'tp', 'until')
  local longest_ms = math.max(60000, tonumber(known[1] or '') or 0, tonumber(known[2] or '') or 0)
  return string.format('%.0f', math.max(longest_ms, math.min(86400000, (tonumber(known[3] or '') or 0) - now_ms())))
end

-- Puts a job into the queue of its key: highest priority first, then in order of arrival. `leader` is a table of
-- `notifications` and the `notification` for a new due time.
local function enqueue_for_key(key_queue, waiting_keys, limit, timers, stats, id, priority, key, policy, leader)
  note_periods(limit, policy)
  local score = redis.call('HINCRBY', limit, 'seq', 1) - tonumber(priority) * 2 ^ 44
  -- The limit stays while jobs wait for it: admit.lua sets its TTL when none does any more
  redis.call('PERSIST', limit)
  redis.call('ZADD', key_queue, string.format('%.0f', score), id)
  redis.call('SADD', waiting_keys, key)
  redis.call('HINCRBY', stats, 'key_waiting', 1)
  -- The caller admits the job at once if the limit allows it; the leader does if the caller dies
  set_due(timers, 'key ' .. key, now_ms() + 1000, leader.notifications, leader.notification, 'LT')
end

-- The score of an admitted job: by stream, then by the time at which it came there.
local function admitted_score(priority, milliseconds)
  return (tonumber(priority) + 100) * 2 ^ 42 + tonumber(milliseconds)
end
