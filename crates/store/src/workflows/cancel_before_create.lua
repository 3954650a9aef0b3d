#!lua flags=allow-oom
-- Ends a workflow's job before it exists, so that a client that is about to make it finds it over.
-- KEYS: 1 record, 2 result
-- ARGV: 1 result, 2 TTL in ms
-- Returns 1, or 0 when the job exists.
-- May run twice: the second run finds its own result.
local record, result = KEYS[1], KEYS[2]
local result_text, result_ttl_ms = ARGV[1], ARGV[2]

if redis.call('EXISTS', record, result) > 0 then return 0 end
redis.call('SET', result, result_text, 'PX', result_ttl_ms)
return 1
