#!lua flags=allow-oom
-- Sets when the upkeep looks at a workflow next.
-- KEYS: 1 workflows
-- ARGV: 1 id, 2 in so many ms
-- Returns 1 when the workflow was not among them, else 0.
-- May run twice: the time is set, not added to.
return redis.call('ZADD', KEYS[1], now_ms() + tonumber(ARGV[2]), ARGV[1])
