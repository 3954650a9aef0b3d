-- What each group of a history was given last.
local function last_given(history)
  local given = {}
  for _, group in ipairs(groups_of(history)) do given[group['name']] = group['last-delivered-id'] end
  return given
end

-- Lets a subscription read a channel, behind a position if it was not there before: a cursor or a group that is there stays where it
-- is, and a cursor that is gone is made again where the group is, which knows what was handed out as well (`given`, of `last_given`).
-- Returns its `position`, whether the cursor `is_new` and whether the group `is_made`; or nothing and an error of Redis.
local function join_group(history, cursor, group, position, ttl_ms, given)
  local is_new = redis.call('HSETNX', cursor, 'd', given[group] or position) == 1
  position = redis.call('HGET', cursor, 'd')
  redis.call('PEXPIRE', cursor, ttl_ms)
  local created = redis.pcall('XGROUP', 'CREATE', history, group, position)
  local problem = type(created) == 'table' and created.err
  if problem and not string.find(problem, 'BUSYGROUP', 1, true) then return nil, redis.error_reply(problem) end
  return { position = position, is_new = is_new, is_made = not problem }
end
