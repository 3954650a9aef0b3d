#!lua flags=allow-oom
-- Stores the report of a worker.
-- KEYS: 1 report
-- ARGV: 1 report as JSON, 2 TTL in ms
-- Returns 1.
-- May run twice: it sets the same value again.
local report = KEYS[1]
local report_json, ttl_ms = ARGV[1], ARGV[2]

redis.call('SET', report, report_json, 'PX', ttl_ms)
return 1
