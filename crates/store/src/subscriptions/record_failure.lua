#!lua flags=allow-oom
-- Notes that a delivery failed.
-- KEYS: 1 figures of the subscription
-- Returns since when nothing but failures was seen, in ms, and the time now.
-- Twice counts twice: figures are for people, and the beginning stays the same.
local now = string.format('%.0f', now_ms())
redis.call('HINCRBY', KEYS[1], 'failed', 1)
redis.call('HSETNX', KEYS[1], 'failing', now)
keep_figures(KEYS[1])
return { redis.call('HGET', KEYS[1], 'failing'), now }
