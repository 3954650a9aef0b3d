#!lua flags=allow-oom
-- Issues a directive to a worker and notifies it. Operators must be able to do it when Redis is out of memory.
-- KEYS: 1 directive
-- ARGV: 1 directive and when it was issued, 2 TTL in ms, 3 notification channel, 4 notification
-- Returns 1.
-- May run twice: it sets the same value again.
local directive = KEYS[1]
local issued, ttl_ms, notifications, notification = ARGV[1], ARGV[2], ARGV[3], ARGV[4]

redis.call('SET', directive, issued, 'PX', ttl_ms)
redis.pcall('PUBLISH', notifications, notification)
return 1
