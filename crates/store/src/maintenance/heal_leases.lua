#!lua flags=allow-oom
-- Moves the leases and time limits of attempts along with Redis's clock after that was set: what was left of them before
-- the step is left after it.
-- KEYS: 1 leases, 2 active
-- ARGV: 1 by how many ms the clock was set, 0 when it was set back nobody knows how far, 2.. attempt names, at most 100
-- Returns how many attempts there were.
-- May run twice, but then the time limits of old attempts are moved twice: the caller repeats a step ahead after an error,
-- which ends none early, and no step back.
local leases, active = KEYS[1], KEYS[2]
local step_ms = tonumber(ARGV[1])
local first_name = 2

-- Attempts that started so recently, by the clock as it is now, may have started after the step
local RECENT_MS = 10000

local now, found = now_ms(), 0
for i = first_name, #ARGV do
  local name = ARGV[i]
  local known_expiry = tonumber(redis.call('ZSCORE', leases, name) or '')
  local expiry = known_expiry
  local text = redis.call('HGET', active, name) or ''
  local token, started, lease_ms, deadline, worker = string.match(text, '^(%S+) (%d+) (%d+) (%d+) (.*)$')
  if expiry and token then
    found = found + 1
    started, lease_ms, deadline = tonumber(started), tonumber(lease_ms), tonumber(deadline)
    local shift_ms = 0
    if step_ms > 0 then
      if started <= now - step_ms + 1000 then shift_ms = step_ms end
      -- A lease that was renewed since is longer
      if shift_ms > 0 and expiry <= now - step_ms + lease_ms + 1000 then expiry = expiry + step_ms end
    elseif started > now then
      shift_ms = step_ms < 0 and step_ms or now - started
    elseif started < now - RECENT_MS then
      shift_ms = step_ms
    end
    if deadline > 0 then deadline = deadline + shift_ms end
    expiry = math.min(expiry, now + lease_ms)
    if deadline > 0 and deadline < expiry then expiry = deadline end
    started = math.max(0, math.min(now, started + shift_ms))
    local healed = string.format('%s %d %d %d %s', token, started, lease_ms, deadline, worker)
    if healed ~= text then redis.call('HSET', active, name, healed) end
    -- The score is a whole number: one that stays is not written
    if expiry ~= known_expiry then redis.call('ZADD', leases, 'XX', string.format('%.0f', expiry), name) end
  end
end
return found
