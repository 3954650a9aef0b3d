#!lua
-- Notes that members are at a gateway, and tells everyone who watches the channel of those that join or have other info.
-- KEYS: 1 members, 2 gateways of members
-- ARGV: 1 gateway, 2 lease in ms, 3 max members of the channel, 4 pub/sub channel of events, 5.. each member, its info or
--       '' for none, and the mark that ends a sealed info, or ''
-- Returns 1 if the gateway had a lease, so that its other members are still there, then for each member 1, or 0 if there are
-- too many.
-- May run twice: the second run finds each member there with its info.
local members, gateways = KEYS[1], KEYS[2]
local gateway, lease_ms, max_members, topic = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local first_member = 5

local now = now_ms()
local had_lease = redis.call('ZSCORE', gateways, gateway) and redis.call('EXISTS', members) == 1
local has_pruned = false
local answers = { had_lease and 1 or 0 }
redis.call('HSETNX', members, 'v', string.format('%.0f', now))
redis.call('ZADD', gateways, now + lease_ms, gateway)
for i = first_member, #ARGV, 3 do
  local member, info, mark = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local known = redis.call('HGET', members, 'm:' .. member)
  local count = tonumber(redis.call('HGET', members, 'n') or '0')
  if not known and count >= max_members and not has_pruned then
    -- Members of gateways that are gone make room
    prune_gateways(members, gateways, topic, now)
    has_pruned, count = true, tonumber(redis.call('HGET', members, 'n') or '0')
  end
  if not known and count >= max_members then
    answers[#answers + 1] = 0
  else
    if redis.call('HSETNX', members, 'h:' .. gateway .. ':' .. member, '1') == 1 then
      redis.call('HINCRBY', members, 'c:' .. member, 1)
    end
    local since = known and string.match(known, '^%d+') or string.format('%.0f', now)
    local value = since .. ' ' .. info
    local has_same = known == value or mark ~= '' and known and string.sub(known, -#mark) == mark
    if not has_same then
      redis.call('HSET', members, 'm:' .. member, value)
      if not known then redis.call('HINCRBY', members, 'n', 1) end
      announce(members, topic, known and 'update' or 'join', member, value)
    end
    answers[#answers + 1] = 1
  end
end
keep(members, gateways)
return answers
