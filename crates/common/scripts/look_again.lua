#!lua flags=allow-oom
-- Sets when the upkeep looks at a workflow next.
-- KEYS: 1 workflows
-- ARGV: 1 id, 2 in so many ms
-- Returns 1 when the workflow was not among them, else 0.
-- May run twice: the time is set, not added to.
local t = redis.call('TIME')
return redis.call('ZADD', KEYS[1], t[1] * 1000 + math.floor(t[2] / 1000) + tonumber(ARGV[2]), ARGV[1])
