-- The time, and timers. For scripts that read the time or set when something is due.

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Notifies the leader, which sleeps until the first time in a sorted set, if this member is the first now.
local function notify_if_first(set, member, notifications, notification)
  if redis.call('ZRANGE', set, 0, 0)[1] == member then redis.pcall('PUBLISH', notifications, notification) end
end

-- Sets the timer at which the leader ends a job whose deadline has passed; '' sets none. It spares a job that runs.
local function expire_at(timers, id, at, notifications, notification)
  if at == '' then return end
  redis.call('ZADD', timers, at, 'expire ' .. id)
  notify_if_first(timers, 'expire ' .. id, notifications, notification)
end
