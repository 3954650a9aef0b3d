#!lua flags=allow-oom
-- Sets when the maintenance looks at a workflow next.
-- KEYS: 1 workflows
-- ARGV: 1 id, 2 in that many ms
-- Returns 1 when the workflow was not among them, else 0.
-- May run twice: the time is set, not added to.
local workflows = KEYS[1]
local id, delay_ms = ARGV[1], tonumber(ARGV[2])

return redis.call('ZADD', workflows, now_ms() + delay_ms, id)
