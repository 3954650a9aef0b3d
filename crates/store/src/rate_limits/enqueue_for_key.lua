#!lua flags=allow-oom
-- Moves a job whose time has come, or that is activated, into the lane of its limit's key.
-- KEYS: 1 due or pending, 2 record, 3 lane, 4 lanes, 5 limit, 6 timers, 7 stats
-- ARGV: 1 "due" to check that its time has come, or "pending", 2 id, 3 priority, 4 key, 5 its limit
-- Returns 1 when it was moved, else 0.
-- May run twice: the second run finds it gone from the set.
local score = redis.call('ZSCORE', KEYS[1], ARGV[2])
local now = now_ms()
if not score or (ARGV[1] == 'due' and tonumber(score) > now) then return 0 end
redis.call('ZREM', KEYS[1], ARGV[2])
if redis.call('HEXISTS', KEYS[2], 'e') == 0 then return 0 end
redis.call('HDEL', KEYS[2], 'd', 'k')
redis.call('HSET', KEYS[2], 's', 'held')
line_up(KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7], ARGV[2], ARGV[3], ARGV[4], ARGV[5], now)
return 1
