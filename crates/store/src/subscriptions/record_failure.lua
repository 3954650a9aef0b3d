#!lua flags=allow-oom
-- Notes that a delivery failed.
-- KEYS: 1 figures of the subscription
-- Returns since when nothing but failures was seen, in ms, and the time now.
-- Twice counts twice: figures are for people, and the beginning stays the same.
local counters = KEYS[1]

local now = string.format('%.0f', now_ms())
redis.call('HINCRBY', counters, 'failed', 1)
redis.call('HSETNX', counters, 'failing_since', now)
extend_counters_ttl(counters)
return { redis.call('HGET', counters, 'failing_since'), now }
