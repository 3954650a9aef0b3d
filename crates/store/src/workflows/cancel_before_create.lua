#!lua flags=allow-oom
-- Stores the end of a workflow's job that does not exist yet: a process that is about to create it finds it ended.
-- KEYS: 1 record, 2 result
-- ARGV: 1 result, 2 TTL in ms
-- Returns 1, or 0 when the job exists.
-- May run twice: the second run finds the result of the first.
local record, result = KEYS[1], KEYS[2]
local result_text, ttl_ms = ARGV[1], ARGV[2]

if redis.call('EXISTS', record, result) > 0 then return 0 end
redis.call('SET', result, result_text, 'PX', ttl_ms)
return 1
