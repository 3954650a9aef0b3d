#!lua flags=allow-oom
-- Notes that messages are done with.
-- KEYS: 1 history, 2 figures of the subscription
-- ARGV: 1 group, 2 how many were delivered, 3 how many were not wanted, 4 positions from here on
-- Returns how many were not done with before.
-- May run twice: figures count what was acknowledged now, or nothing.
local acked = redis.call('XACK', KEYS[1], ARGV[1], unpack(ARGV, 4))
if acked > 0 then
  if ARGV[2] ~= '0' then
    redis.call('HINCRBY', KEYS[2], 'delivered', ARGV[2])
    redis.call('HSET', KEYS[2], 'at', string.format('%.0f', now_ms()))
    redis.call('HDEL', KEYS[2], 'failing')
  end
  if ARGV[3] ~= '0' then redis.call('HINCRBY', KEYS[2], 'filtered', ARGV[3]) end
  keep_figures(KEYS[2])
end
return acked
