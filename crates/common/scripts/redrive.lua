#!lua
-- Makes a dead letter available again.
-- KEYS: 1 dead letters, 2 result, 3 record, 4 stream, 5 priorities
-- ARGV: 1 id, 2 priority, 3 wake channel, 4 wake message, 5.. fields and values of the job
-- Returns 1, or 0 when it is no dead letter any more.
-- May run twice: the second run finds it gone.
if not redis.call('ZSCORE', KEYS[1], ARGV[1]) or redis.call('EXISTS', KEYS[2]) == 0 then return 0 end
if redis.call('EXISTS', KEYS[4]) == 0 then
  redis.call('XGROUP', 'CREATE', KEYS[4], 'workers', '0', 'MKSTREAM')
end
if redis.call('SADD', KEYS[5], ARGV[2]) == 1 then redis.call('PUBLISH', ARGV[3], ARGV[4]) end
local entry = redis.call('XADD', KEYS[4], '*', 'i', ARGV[1], unpack(ARGV, 5))
redis.call('HSET', KEYS[3], 's', 'queued', 'p', ARGV[2], 'x', entry)
redis.call('DEL', KEYS[2])
redis.call('ZREM', KEYS[1], ARGV[1])
return 1
