#!lua flags=allow-oom
-- Notes how many jobs of a workflow were created.
-- KEYS: 1 workflow
-- ARGV: 1 index before which all jobs that must exist do
-- Returns the state of the workflow if it ended, "gone" when it does not exist, else "".
-- May run twice: the index only grows.
local workflow = KEYS[1]
local created = ARGV[1]

if redis.call('EXISTS', workflow) == 0 then return 'gone' end
local known = tonumber(redis.call('HGET', workflow, 'n') or '0')
if tonumber(created) > known then redis.call('HSET', workflow, 'n', created) end
return redis.call('HGET', workflow, 's') or ''
