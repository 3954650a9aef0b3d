-- The last id that each consumer group of a history delivered, by the name of the group.
local function last_delivered_ids(history)
  local delivered = {}
  for _, group in ipairs(groups_of(history)) do delivered[group['name']] = group['last-delivered-id'] end
  return delivered
end

-- Lets a subscription read a channel from a position on. A cursor or a group that exists stays where it is. A cursor that
-- expired starts again where its group is (`delivered`, from `last_delivered_ids`), because the group knows what it
-- delivered. A cursor of another subscription of that name (`created_at` tells them apart) is adopted only if
-- `may_adopt`. Returns a table: `position`, `is_new` for a new cursor, `is_made` for a new group, or `is_other`; or
-- nil and an error.
local function join_group(history, cursor, group, position, ttl_ms, delivered, created_at, may_adopt)
  local known = redis.call('HGET', cursor, 'i')
  if known and known ~= created_at and not may_adopt then return { is_other = true } end
  local is_new = redis.call('HSETNX', cursor, 'd', delivered[group] or position) == 1
  position = redis.call('HGET', cursor, 'd')
  redis.call('HSET', cursor, 'i', created_at)
  redis.call('PEXPIRE', cursor, ttl_ms)
  local created = redis.pcall('XGROUP', 'CREATE', history, group, position)
  local problem = type(created) == 'table' and created.err
  if problem and not string.find(problem, 'BUSYGROUP', 1, true) then return nil, redis.error_reply(problem) end
  return { position = position, is_new = is_new, is_made = not problem }
end
