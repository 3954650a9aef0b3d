#!lua flags=allow-oom
-- Stores the report of a worker and returns the directive for it.
-- KEYS: 1 report, 2 workers, 3 directive
-- ARGV: 1 worker id, 2 report as JSON, 3 TTL of the report in ms, 4 max workers: a new worker beyond them is not listed; 0
--       for no limit, 5 ms for which a directive other than "terminate" outlives the last report
-- Returns the directive, or ''.
-- May run twice: it sets the same values again.
local report, workers, directive = KEYS[1], KEYS[2], KEYS[3]
local worker_id, report_json, report_ttl_ms = ARGV[1], ARGV[2], ARGV[3]
local max_workers, directive_ttl_ms = tonumber(ARGV[4]), ARGV[5]

local now = now_ms()
local expired = redis.call('ZRANGEBYSCORE', workers, '-inf', now, 'LIMIT', 0, 100)
if #expired > 0 then redis.call('ZREM', workers, unpack(expired)) end
if max_workers == 0 or redis.call('ZSCORE', workers, worker_id) or redis.call('ZCARD', workers) < max_workers then
  redis.call('SET', report, report_json, 'PX', report_ttl_ms)
  redis.call('ZADD', workers, now + tonumber(report_ttl_ms), worker_id)
end
local wanted = redis.call('GET', directive)
-- "terminate" is not extended: the next worker of that name must not stop because of it
if wanted and string.sub(wanted, 1, 9) ~= 'terminate' then redis.call('PEXPIRE', directive, directive_ttl_ms) end
return wanted or ''
