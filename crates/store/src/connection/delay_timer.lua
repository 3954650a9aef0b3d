#!lua flags=allow-oom
-- Sets the time of a timer that is there.
-- KEYS: 1 timers, or another sorted set of what is due
-- ARGV: 1 timer, 2 ms
-- Returns 1 when it was changed, else 0.
-- May run twice: the time is set.
return redis.call('ZADD', KEYS[1], 'XX', 'CH', ARGV[2], ARGV[1])
