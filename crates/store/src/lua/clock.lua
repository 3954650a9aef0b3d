-- The time, and timers. For scripts that read the time or set when something is due.

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- When a lease starts: now, or the caller's `expected` time (`Redis::lease_start`) if that is later. Redis's clock was
-- set back then, perhaps for a moment. Counted from now the lease would end early when the clock is set ahead again.
local function lease_start(expected)
  return math.max(now_ms(), tonumber(expected))
end

-- How far behind a due time the leader may be before it has probably missed a notification.
local MAX_LATE_MS = 1000

-- Sets when a member of a sorted set is due. Everything that is due at a time is set here, because here the leader
-- learns of it: it sleeps until the first time that it knows of. It is notified of the time if this one is the first now,
-- or if the first one is overdue. Times that only move back need no notification: the leader looks at the earlier one.
-- With `only` "LT" a member that is due earlier keeps its time, with "XX" the member must be there.
local function set_due(set, member, at, notifications, notification, only)
  at = string.format('%.0f', at)
  local known = redis.call('ZSCORE', set, member)
  local is_later = known and tonumber(known) <= tonumber(at)
  if (only == 'LT' and is_later) or (only == 'XX' and not known) then return end
  redis.call('ZADD', set, at, member)
  if is_later then return end
  local first = redis.call('ZRANGE', set, 0, 0, 'WITHSCORES')
  if first[1] == member or tonumber(first[2]) < now_ms() - MAX_LATE_MS then
    redis.pcall('PUBLISH', notifications, notification .. ' ' .. at)
  end
end

-- The same for members that are due together, with commands for all of them.
local function set_all_due(set, members, at, notifications, notification)
  if #members == 0 then return end
  at = string.format('%.0f', at)
  local scores = {}
  for _, member in ipairs(members) do
    scores[#scores + 1] = at
    scores[#scores + 1] = member
  end
  redis.call('ZADD', set, unpack(scores))
  local first = redis.call('ZRANGE', set, 0, 0, 'WITHSCORES')
  if first[2] == at or tonumber(first[2]) < now_ms() - MAX_LATE_MS then
    redis.pcall('PUBLISH', notifications, notification .. ' ' .. at)
  end
end

-- Sets the timer at which the leader ends a job whose deadline has passed; '' sets none. It spares a job that runs.
local function expire_at(timers, id, at, notifications, notification)
  if at ~= '' then set_due(timers, 'expire ' .. id, tonumber(at), notifications, notification) end
end
