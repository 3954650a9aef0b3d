#!lua flags=allow-oom
-- Counts a failed delivery.
-- KEYS: 1 counters of the subscription
-- ARGV: none
-- Returns {time of the first failure since the last success, now}, in ms.
-- May run twice: it counts the failure twice, which only people read; the time of the first failure stays.
local counters = KEYS[1]

local now = string.format('%.0f', now_ms())
redis.call('HINCRBY', counters, 'failed', 1)
redis.call('HSETNX', counters, 'failing_since', now)
extend_counters_ttl(counters)
return { redis.call('HGET', counters, 'failing_since'), now }
