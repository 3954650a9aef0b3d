#!lua flags=allow-oom
-- Ends a workflow that has not ended.
-- KEYS: 1 workflow
-- ARGV: 1 state, 2 now ms
-- Returns "done", the state that it ended with before, or "gone" if there is no such workflow.
-- May run twice: the second run finds it over.
local workflow = KEYS[1]
local state, now_ms = ARGV[1], ARGV[2]

if redis.call('EXISTS', workflow) == 0 then return 'gone' end
if redis.call('HSETNX', workflow, 's', state) == 0 then return redis.call('HGET', workflow, 's') end
redis.call('HSET', workflow, 'f', now_ms)
return 'done'
