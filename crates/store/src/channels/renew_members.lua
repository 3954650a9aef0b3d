#!lua flags=allow-oom
-- Renews the lease of a gateway for its members of a channel, and releases those of gateways that are gone. After an outage
-- other gateways need a moment to renew theirs.
-- KEYS: 1 members, 2 gateways of members
-- ARGV: 1 gateway, 2 lease in ms, 3 pub/sub channel of events, 4 "1" if the gateway has members of the channel, 5 "1" if
--       those of gateways whose lease has ended leave
-- Returns {1 if the gateway has a lease, the version of the members}. Without a lease it must note its members again.
-- May run twice: it sets the same values again.
local members, gateways = KEYS[1], KEYS[2]
local gateway, lease_ms, topic = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local has_members, may_prune = ARGV[4] == '1', ARGV[5] == '1'

local now = now_ms()
local is_known = redis.call('ZSCORE', gateways, gateway) and redis.call('EXISTS', members) == 1
if is_known and has_members then
  redis.call('ZADD', gateways, now + lease_ms, gateway)
  keep(members, gateways)
end
if may_prune then prune_gateways(members, gateways, topic, now) end
return { is_known and 1 or 0, redis.call('HGET', members, 'v') or '0' }
