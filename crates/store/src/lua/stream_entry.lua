-- For scripts that make a job available.

-- Adds an entry to a stream. Creates the stream with its group, and lists its priority, if they are missing.
local function add_entry(stream, priorities, priority, notifications, notification, fields)
  if redis.call('EXISTS', stream) == 0 then
    redis.call('XGROUP', 'CREATE', stream, 'workers', '0', 'MKSTREAM')
  end
  local is_new = redis.call('SADD', priorities, priority) == 1
  local entry = redis.call('XADD', stream, '*', unpack(fields))
  if is_new then redis.pcall('PUBLISH', notifications, notification) end
  return entry
end

-- The fields of the stream entry of a job that has a record; nil when there is no record.
local function entry_fields(id, record_fields)
  local only_in_records = { s = true, p = true, d = true, k = true, x = true }
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

-- Stores the limit of a key as a job brought it: concurrency or -1, rate and its ms, throttle and its ms.
local function set_policy(limit, policy)
  local concurrency, rate, rate_ms, throttle, throttle_ms = string.match(policy, '^(%-?%d+) (%d+) (%d+) (%d+) (%d+)$')
  if not concurrency then return end
  redis.call('HSET', limit, 'c', concurrency, 'rl', rate, 'rp', rate_ms, 'tl', throttle, 'tp', throttle_ms)
end

-- Puts a job into the queue of its key: highest priority first, then in order of arrival. The job's own limit counts
-- when none is stored for the key.
local function enqueue_for_key(key_queue, waiting_keys, limit, timers, stats, id, priority, key, policy, now)
  if redis.call('HEXISTS', limit, 'c') == 0 then set_policy(limit, policy) end
  local score = redis.call('HINCRBY', limit, 'seq', 1) - tonumber(priority) * 2 ^ 44
  -- The limit stays while jobs wait for it: admit.lua sets its TTL when none does any more
  redis.call('PERSIST', limit)
  redis.call('ZADD', key_queue, string.format('%.0f', score), id)
  redis.call('SADD', waiting_keys, key)
  redis.call('HINCRBY', stats, 'key_waiting', 1)
  -- The caller admits the job at once if the limit allows it; the leader does if the caller dies
  redis.call('ZADD', timers, 'LT', now + 1000, 'key ' .. key)
end

-- The score of an admitted job: by stream, then by the time at which it came there.
local function admitted_score(priority, milliseconds)
  return (tonumber(priority) + 100) * 2 ^ 42 + tonumber(milliseconds)
end
