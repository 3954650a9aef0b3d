#!lua flags=allow-oom
-- Changes the time of a timer that exists.
-- KEYS: 1 timers, or another sorted set whose scores say when its members are due
-- ARGV: 1 timer, 2 time at which it is due, in ms
-- Returns 1 when the time changed, else 0.
-- May run twice: it sets the time to the same value.
local timers = KEYS[1]
local timer, due_at = ARGV[1], ARGV[2]

return redis.call('ZADD', timers, 'XX', 'CH', due_at, timer)
