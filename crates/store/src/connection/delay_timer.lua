#!lua flags=allow-oom
-- Sets the time of a timer that is there.
-- KEYS: 1 timers, or another sorted set of what is due
-- ARGV: 1 timer, 2 ms
-- Returns 1 when it was changed, else 0.
-- May run twice: the time is set.
local timers = KEYS[1]
local timer, at_ms = ARGV[1], ARGV[2]

return redis.call('ZADD', timers, 'XX', 'CH', at_ms, timer)
