-- Put in front of every script that ends or extends an attempt.

-- An attempt in the active hash is "<token> <started ms> <lease ms> <deadline ms> <worker>".
-- Token "-": a queue-worker has it, and its name in the pending list is the fence.
local function attempt_of(active, member)
  local text = redis.call('HGET', active, member)
  if not text then return nil end
  local token, started, lease, deadline, worker = string.match(text, '^(%S+) (%d+) (%d+) (%d+) (.*)$')
  return { token = token, lease = tonumber(lease), deadline = tonumber(deadline), worker = worker }
end

-- Is the attempt that the caller means still the current one? Its stream entry is part of the fence: an attempt
-- that ended took its entry along, and the next attempt has another.
--   worker <consumer> <least idle ms>  the consumer holds the entry (and has been silent that long)
--   pull <token or ""> <worker or "">  somebody fetched it over HTTP; what the caller knows must match
--   lapsed <token>                     its lease or its time is over
local function held(stream, active, leases, entry, member, kind, a, b)
  if kind == 'worker' then
    local idle = tonumber(b)
    local found
    if idle > 0 then
      found = redis.pcall('XPENDING', stream, 'workers', 'IDLE', idle, entry, entry, 1, a)
    else
      found = redis.pcall('XPENDING', stream, 'workers', entry, entry, 1, a)
    end
    return not found.err and #found == 1
  end
  local attempt = attempt_of(active, member)
  if not attempt then return false end
  if kind == 'pull' then
    if attempt.token == '-' then return false end
    if a ~= '' and a ~= attempt.token then return false end
    return b == '' or attempt.worker == '' or b == attempt.worker
  end
  local due = redis.call('ZSCORE', leases, member)
  return attempt.token == a and due and tonumber(due) <= now_ms()
end

-- Takes an attempt's entry out of the stream and forgets the attempt.
local function take_out(stream, active, leases, entry, member)
  redis.call('XACK', stream, 'workers', entry)
  redis.call('XDEL', stream, entry)
  redis.call('HDEL', active, member, 'p:' .. member)
  redis.call('ZREM', leases, member)
end

-- What follows the end of a job, in its own script calls. A timer sees to it if the caller dies before.
local function job_is_over(timers, held, id, follow_up)
  redis.call('ZREM', timers, 'expire ' .. id)
  if redis.call('ZREM', held, id) == 1 then
    redis.call('ZADD', timers, 'LT', now_ms() + 2000, 'lane ' .. string.match(held, ':held:(.+)$'))
  end
  if follow_up == '1' then redis.call('ZADD', timers, now_ms() + 2000, 'after ' .. id) end
end
