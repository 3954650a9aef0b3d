-- For scripts that end or extend an attempt.

-- An attempt in the active hash is "<token> <started ms> <lease ms> <deadline ms> <worker>".
-- With the token "-" a queue-worker runs it, and the worker's name in the pending list is the fence.
local function attempt_of(active, attempt_name)
  local text = redis.call('HGET', active, attempt_name)
  if not text then return nil end
  local token, _, lease_ms, deadline, worker = string.match(text, '^(%S+) (%d+) (%d+) (%d+) (.*)$')
  return { token = token, lease_ms = tonumber(lease_ms), deadline = tonumber(deadline), worker = worker }
end

-- Whether the attempt that the caller means is still the current one. Its stream entry is part of the fence: an attempt
-- that ended took its entry along, and the next attempt has another.
--   kind           owner          detail
--   worker         consumer       min idle ms   the consumer has the entry, and has been idle for that long
--   pull           token or ""    worker or ""  the job was fetched over HTTP; what the caller knows must match
--   expired_lease  token                        its lease expired or its deadline passed
local function is_current_attempt(stream, active, leases, entry, attempt_name, kind, owner, detail)
  if kind == 'worker' then
    local min_idle_ms = tonumber(detail)
    local found
    if min_idle_ms > 0 then
      found = redis.pcall('XPENDING', stream, 'workers', 'IDLE', min_idle_ms, entry, entry, 1, owner)
    else
      found = redis.pcall('XPENDING', stream, 'workers', entry, entry, 1, owner)
    end
    return not found.err and #found == 1
  end
  local attempt = attempt_of(active, attempt_name)
  if not attempt then return false end
  if kind == 'pull' then
    if attempt.token == '-' then return false end
    if owner ~= '' and owner ~= attempt.token then return false end
    return detail == '' or attempt.worker == '' or detail == attempt.worker
  end
  local expiry = redis.call('ZSCORE', leases, attempt_name)
  return attempt.token == owner and expiry and tonumber(expiry) <= now_ms()
end

-- Renews the lease of a job that was fetched over HTTP, for its full length but not past its deadline.
local function renew_lease(active, leases, attempt_name, expected_start, notifications, notification)
  local attempt = attempt_of(active, attempt_name)
  local expiry = lease_start(expected_start) + attempt.lease_ms
  if attempt.deadline > 0 and attempt.deadline < expiry then expiry = attempt.deadline end
  set_due(leases, attempt_name, expiry, notifications, notification, 'XX')
end

-- Removes the entry of an attempt from the stream, and the attempt with it.
local function remove_entry(stream, active, leases, entry, attempt_name)
  redis.call('XACK', stream, 'workers', entry)
  redis.call('XDEL', stream, entry)
  redis.call('HDEL', active, attempt_name, 'p:' .. attempt_name)
  redis.call('ZREM', leases, attempt_name)
end

-- Prepares what follows the end of a job: the caller runs it in later calls, and the leader does two seconds later if the
-- caller died.
local function after_end(timers, admitted, id, has_follow_up, notifications, notification)
  redis.call('ZREM', timers, 'expire ' .. id)
  if redis.call('ZREM', admitted, id) == 1 then
    local timer = 'key ' .. string.match(admitted, ':admitted:(.+)$')
    set_due(timers, timer, now_ms() + 2000, notifications, notification, 'LT')
  end
  if has_follow_up == '1' then
    set_due(timers, 'follow_up ' .. id, now_ms() + 2000, notifications, notification)
  end
end
