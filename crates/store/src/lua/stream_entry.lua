-- Put in front of every script that makes a job available.

-- Adds an entry to a stream, which is made with its group and its place among the priorities if it is missing.
local function put(stream, priorities, priority, wake, message, fields)
  if redis.call('EXISTS', stream) == 0 then
    redis.call('XGROUP', 'CREATE', stream, 'workers', '0', 'MKSTREAM')
  end
  if redis.call('SADD', priorities, priority) == 1 then redis.call('PUBLISH', wake, message) end
  return redis.call('XADD', stream, '*', unpack(fields))
end

-- What of a record goes along into the stream; nil when there is no record.
local function entry_fields(id, record)
  local only_in_records = { s = true, p = true, d = true, k = true, x = true }
  local fields = { 'i', id }
  for i = 1, #record, 2 do
    if not only_in_records[record[i]] then
      fields[#fields + 1] = record[i]
      fields[#fields + 1] = record[i + 1]
    end
  end
  if #fields == 2 then return nil end
  return fields
end

-- The record of a job that is in a stream now: everything else is in the entry.
local function note_entry(record, priority, entry)
  redis.call('DEL', record)
  redis.call('HSET', record, 's', 'queued', 'p', priority, 'x', entry)
end

-- Notes the limit of a key as a job brought it: most at once or -1, rate and its ms, throttle and its ms.
local function set_policy(limit, policy)
  local c, rl, rp, tl, tp = string.match(policy, '^(%-?%d+) (%d+) (%d+) (%d+) (%d+)$')
  if c then redis.call('HSET', limit, 'c', c, 'rl', rl, 'rp', rp, 'tl', tl, 'tp', tp) end
end

-- Puts a job behind the others with its key: highest priority first, then in order of arrival. Its own limit counts where
-- none is known any more.
local function line_up(lane, lanes, limit, timers, stats, id, priority, key, policy, now)
  if redis.call('HEXISTS', limit, 'c') == 0 then set_policy(limit, policy) end
  local place = redis.call('HINCRBY', limit, 'seq', 1) - tonumber(priority) * 2 ^ 44
  -- It stays as long as jobs wait for it: admit.lua sets the TTL when none does any more
  redis.call('PERSIST', limit)
  redis.call('ZADD', lane, string.format('%.0f', place), id)
  redis.call('SADD', lanes, key)
  redis.call('HINCRBY', stats, 'laned', 1)
  -- Whoever lined it up lets it in at once if it may; the upkeep does if that one dies
  redis.call('ZADD', timers, 'LT', now + 1000, 'lane ' .. key)
end

-- The score of a job among those that its key holds: by stream, then by when it came there.
local function held_score(priority, milliseconds)
  return (tonumber(priority) + 100) * 2 ^ 42 + tonumber(milliseconds)
end
