#!lua flags=allow-oom
-- Stores the report of a worker and returns the directive for it.
-- KEYS: 1 report, 2 workers, 3 directive, 4 silent workers
-- ARGV: 1 worker id, 2 report as JSON, 3 TTL of the report in ms, 4 max workers: a new worker beyond them is not listed; 0
--       for no limit, 5 ms for which a directive other than "terminate" outlives the last report, 6 what the worker does:
--       "fetch", or "heartbeat" when it learns of the directive, 7 "running" or "stopping", 8 what tells it from another
--       process with its id, or ""
-- Returns the directive, or ''.
-- May run twice: it sets the same values again.
local report, workers, directive, silent = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local worker_id, report_json, report_ttl_ms = ARGV[1], ARGV[2], ARGV[3]
local max_workers, directive_ttl_ms = tonumber(ARGV[4]), ARGV[5]
local action, progress, instance = ARGV[6], ARGV[7], ARGV[8]

-- How long a worker that stopped reporting is shown, and how many
local SILENT_MS, MAX_SILENT = 600000, 1000

local now = now_ms()
-- Times that no report can have are from before the clock was set back: the worker gets the time to report again
local max_ttl_ms = math.max(60000, tonumber(report_ttl_ms))
local too_late = redis.call('ZRANGEBYSCORE', workers, string.format('(%.0f', now + max_ttl_ms), '+inf', 'LIMIT', 0, 100)
for _, worker in ipairs(too_late) do redis.call('ZADD', workers, now + max_ttl_ms, worker) end
local expired = redis.call('ZRANGEBYSCORE', workers, '-inf', now, 'LIMIT', 0, 100)
if #expired > 0 then
  redis.call('ZREM', workers, unpack(expired))
  -- They are shown for a while, so that people see who is missing
  for _, worker in ipairs(expired) do redis.call('ZADD', silent, now, worker) end
end
redis.call('ZREM', silent, worker_id)
redis.call('ZREMRANGEBYSCORE', silent, '-inf', now - SILENT_MS)
redis.call('ZREMRANGEBYRANK', silent, 0, -MAX_SILENT - 1)
redis.call('PEXPIRE', silent, SILENT_MS)
if max_workers == 0 or redis.call('ZSCORE', workers, worker_id) or redis.call('ZCARD', workers) < max_workers then
  redis.call('SET', report, report_json, 'PX', tonumber(report_ttl_ms) + SILENT_MS)
  redis.call('ZADD', workers, now + tonumber(report_ttl_ms), worker_id)
end
local wanted = redis.call('GET', directive)
if not wanted then return '' end
local issued = string.match(wanted, '^%S+ %d+')
if string.sub(wanted, 1, 9) ~= 'terminate' then
  redis.call('PEXPIRE', directive, directive_ttl_ms)
  return issued
end
-- "terminate" is for the process that learns of it first, and not for the next one with its id
local told_progress, told_instance = string.match(wanted, '^%S+ %d+ (%S+) (.*)$')
if told_progress then
  local is_next = action == 'fetch' or told_instance ~= instance
    or (told_progress == 'stopping' and progress == 'running')
  if is_next then
    redis.call('DEL', directive)
    return ''
  end
end
if action == 'heartbeat' then
  redis.call('SET', directive, issued .. ' ' .. progress .. ' ' .. instance, 'KEEPTTL')
  if not told_progress then redis.call('PEXPIRE', directive, report_ttl_ms) end
end
return issued
