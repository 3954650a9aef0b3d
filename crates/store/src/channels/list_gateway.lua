#!lua flags=allow-oom
-- Lists a gateway that reported its reader counts, and drops those that stopped reporting.
-- KEYS: 1 gateways
-- ARGV: 1 gateway, 2 TTL of its counts in ms
-- Returns 1.
-- May run twice: it sets the same values again.
local gateways = KEYS[1]
local gateway, ttl_ms = ARGV[1], tonumber(ARGV[2])

local now = now_ms()
redis.call('ZADD', gateways, now, gateway)
-- Times that are still to come are from before the clock was set back: live gateways report again
redis.call('ZREMRANGEBYSCORE', gateways, string.format('(%.0f', now), '+inf')
redis.call('ZREMRANGEBYSCORE', gateways, '-inf', now - ttl_ms)
redis.call('PEXPIRE', gateways, ttl_ms)
return 1
