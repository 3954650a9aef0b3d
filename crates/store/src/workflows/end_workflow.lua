#!lua flags=allow-oom
-- Ends a workflow that is not over.
-- KEYS: 1 workflow
-- ARGV: 1 state, 2 now ms
-- Returns "done", the state that it ended with before, or "gone" if there is no such workflow.
-- May run twice: the second run finds it over.
if redis.call('EXISTS', KEYS[1]) == 0 then return 'gone' end
if redis.call('HSETNX', KEYS[1], 's', ARGV[1]) == 0 then return redis.call('HGET', KEYS[1], 's') end
redis.call('HSET', KEYS[1], 'f', ARGV[2])
return 'done'
