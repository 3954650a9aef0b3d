-- Who is present on a channel. `members` is a hash: `m:<member>` is when the member joined, in ms, and its info, `c:<member>`
-- at how many gateways it is, `h:<gateway>:<member>` is there if it is at that one, `n` the number of members, and `v`
-- grows by 1 with each event. `gateways` is a sorted set of gateways by when their lease ends.

-- The longest lease that a setting allows. Keys without a lease are kept that much longer
local max_lease_ms = 600000

local function keep(members, gateways)
  redis.call('PEXPIRE', members, 2 * max_lease_ms)
  redis.call('PEXPIRE', gateways, 2 * max_lease_ms)
end

-- Tells everyone who watches the channel what happened.
local function announce(members, topic, kind, member, value)
  local version = redis.call('HINCRBY', members, 'v', 1)
  publish_topic(topic, string.format('%.0f', version) .. ' ' .. kind .. ' ' .. member .. ' ' .. (value or ''))
end

-- A member is no longer at a gateway. It leaves if it is at no other one.
local function release_member(members, topic, gateway, member)
  if redis.call('HDEL', members, 'h:' .. gateway .. ':' .. member) == 0 then return end
  if redis.call('HINCRBY', members, 'c:' .. member, -1) > 0 then return end
  redis.call('HDEL', members, 'c:' .. member, 'm:' .. member)
  redis.call('HINCRBY', members, 'n', -1)
  announce(members, topic, 'leave', member)
end

-- Releases the members of gateways whose lease has ended.
local function prune_gateways(members, gateways, topic, now)
  -- Longer leases are from before the clock was set back
  for _, gateway in ipairs(redis.call('ZRANGEBYSCORE', gateways, now + max_lease_ms + 1000, '+inf')) do
    redis.call('ZADD', gateways, now + max_lease_ms, gateway)
  end
  local ended = redis.call('ZRANGEBYSCORE', gateways, '-inf', now)
  if #ended == 0 then return end
  local is_ended = {}
  for _, gateway in ipairs(ended) do
    is_ended[gateway] = true
    redis.call('ZREM', gateways, gateway)
  end
  for _, field in ipairs(redis.call('HKEYS', members)) do
    local gateway, member = string.match(field, '^h:(%x+):(.+)$')
    if gateway and is_ended[gateway] then release_member(members, topic, gateway, member) end
  end
end
