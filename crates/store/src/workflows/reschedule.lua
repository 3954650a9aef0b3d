#!lua flags=allow-oom
-- Sets when maintenance checks a workflow next.
-- KEYS: 1 workflows
-- ARGV: 1 id, 2 delay in ms
-- Returns 1 when the set did not have the workflow, else 0.
-- May run twice: it sets the time and adds nothing to it.
local workflows = KEYS[1]
local id, delay_ms = ARGV[1], tonumber(ARGV[2])

return redis.call('ZADD', workflows, now_ms() + delay_ms, id)
