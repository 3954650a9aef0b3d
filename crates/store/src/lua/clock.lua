-- Put in front of every script that needs the time, or sets one at which something is to be seen to.

local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

-- Wakes the upkeep, which sleeps until the first time in a set, if this one comes first now.
local function wake_if_first(set, member, wake, message)
  if redis.call('ZRANGE', set, 0, 0)[1] == member then redis.call('PUBLISH', wake, message) end
end

-- Has the upkeep look whether the job's time is over; it does not while an attempt runs.
local function expire_at(timers, id, at, wake, message)
  if at == '' then return end
  redis.call('ZADD', timers, at, 'expire ' .. id)
  wake_if_first(timers, 'expire ' .. id, wake, message)
end
