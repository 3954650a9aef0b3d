#!lua flags=allow-oom
-- Ends a workflow's job before it exists, so that whoever is about to make it finds it over.
-- KEYS: 1 record, 2 result
-- ARGV: 1 result, 2 TTL in ms
-- Returns 1, or 0 when the job exists.
-- May run twice: the second run finds its own result.
if redis.call('EXISTS', KEYS[1], KEYS[2]) > 0 then return 0 end
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
return 1
