#!lua flags=allow-oom
-- Notes how many jobs of a workflow were created.
-- KEYS: 1 workflow
-- ARGV: 1 the jobs before this index that must exist do
-- Returns the state of the workflow if it is over, "gone" if there is no such one, else "".
-- May run twice: the number only grows.
local workflow = KEYS[1]
local index = tonumber(ARGV[1])

if redis.call('EXISTS', workflow) == 0 then return 'gone' end
if index > tonumber(redis.call('HGET', workflow, 'n') or '0') then redis.call('HSET', workflow, 'n', index) end
return redis.call('HGET', workflow, 's') or ''
