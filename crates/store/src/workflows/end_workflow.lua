#!lua flags=allow-oom
-- Ends a workflow that has not ended.
-- KEYS: 1 workflow
-- ARGV: 1 state, 2 now in ms
-- Returns "done", the state in which it ended before, or "gone" when the workflow does not exist.
-- May run twice: the second run finds it ended.
local workflow = KEYS[1]
local state, now = ARGV[1], ARGV[2]

if redis.call('EXISTS', workflow) == 0 then return 'gone' end
if redis.call('HSETNX', workflow, 's', state) == 0 then return redis.call('HGET', workflow, 's') end
redis.call('HSET', workflow, 'f', now)
return 'done'
