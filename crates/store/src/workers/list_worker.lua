#!lua flags=allow-oom
-- Lists a worker that reports, and notices those that stopped reporting.
-- KEYS: 1 workers, 2 silent workers
-- ARGV: 1 worker id, 2 TTL of its report in ms, 3 max workers: a new worker beyond them is not listed; 0 for no limit, 4 ms
--       for which a worker that stopped reporting is shown
-- Returns 1 when the worker is listed, else 0.
-- May run twice: it sets the same values again.
local workers, silent = KEYS[1], KEYS[2]
local worker_id, report_ttl_ms, max_workers, silent_ms = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]

-- How many workers that stopped reporting are shown
local MAX_SILENT = 1000

local now = now_ms()
-- Times that no report can have are from before the clock was set back: the worker gets the time to report again
local max_ttl_ms = math.max(60000, report_ttl_ms)
local too_late = redis.call('ZRANGEBYSCORE', workers, string.format('(%.0f', now + max_ttl_ms), '+inf', 'LIMIT', 0, 100)
for _, worker in ipairs(too_late) do redis.call('ZADD', workers, now + max_ttl_ms, worker) end
local expired = redis.call('ZRANGEBYSCORE', workers, '-inf', now, 'LIMIT', 0, 100)
if #expired > 0 then
  redis.call('ZREM', workers, unpack(expired))
  -- They are shown for a while, so that people see who is missing. Their reports do not live longer either
  for _, worker in ipairs(expired) do redis.call('ZADD', silent, now, worker) end
  redis.call('ZREMRANGEBYSCORE', silent, '-inf', now - tonumber(silent_ms))
  redis.call('ZREMRANGEBYRANK', silent, 0, -MAX_SILENT - 1)
  redis.call('PEXPIRE', silent, silent_ms)
end
redis.call('ZREM', silent, worker_id)
local has_room = max_workers == 0 or redis.call('ZSCORE', workers, worker_id)
  or redis.call('ZCARD', workers) < max_workers
if not has_room then return 0 end
redis.call('ZADD', workers, now + report_ttl_ms, worker_id)
return 1
