#!lua flags=allow-oom
-- Returns the directive for a worker that reports.
-- KEYS: 1 directive
-- ARGV: 1 TTL of the report in ms, 2 ms for which a directive other than "terminate" outlives the last report, 3 what the
--       worker does: "fetch", or "heartbeat" when it learns of the directive, 4 "running" or "stopping", 5 what tells it
--       from another process with its id, or ""
-- Returns the directive, or ''.
-- May run twice: it sets the same values again.
local directive = KEYS[1]
local report_ttl_ms, directive_ttl_ms = ARGV[1], ARGV[2]
local action, progress, instance = ARGV[3], ARGV[4], ARGV[5]

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
