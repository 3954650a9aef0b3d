#!lua flags=allow-oom
-- Lists a worker of a broadcast, and drops those that are gone.
-- KEYS: 1 workers of the subscription
-- ARGV: 1 worker, 2 ms after which a worker that saves no checkpoint is gone
-- Returns 1.
-- May run twice: it sets the same values again.
local workers = KEYS[1]
local worker, ttl_ms = ARGV[1], tonumber(ARGV[2])

local now = now_ms()
redis.call('ZADD', workers, now, worker)
redis.call('ZREMRANGEBYSCORE', workers, '-inf', now - ttl_ms)
redis.call('PEXPIRE', workers, ttl_ms)
return 1
