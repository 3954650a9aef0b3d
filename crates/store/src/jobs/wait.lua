#!lua flags=allow-oom
-- Ends an attempt whose job waits for a signal or a time, without an outcome, and schedules the job for then. With the signal
-- there already, or the time over, it is due at once.
-- KEYS: 1 stream, 2 active, 3 leases, 4 record, 5 due, 6 timers, 7 admitted, 8 checkpoint, 9 signals
-- ARGV: 1 entry, 2 attempt name, 3 to 5 fence: kind, owner, detail (see fence.lua), 6 id, 7 priority, 8 name of the signal or
--       "-", 9 step, 10 since when the step has waited, in ms, or "" when it begins now, 11 until when or 0 for ever, if 10 is
--       given, 12 longest wait in ms or "" for ever, if it begins now, 13 numbers of the signals that the job knows, each
--       between commas, 14 a due time that is never, 15 notification channel, 16 notification, 17 key of the limit or "", 18 ms
--       at which the job expires or "", 19.. fields and values of the job
-- Returns {"done", due in ms, 1 if that is now else 0}, {"done_before", due in ms, 0} when an earlier run of this call did it,
-- or {"stale"} when the attempt is not the current one.
-- May run twice: the record names the attempt that ended.
local stream, active, leases, record, due = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local timers, admitted, checkpoint, signals = KEYS[6], KEYS[7], KEYS[8], KEYS[9]
local entry, attempt_name, fence_kind, fence_owner, fence_detail = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local id, priority, signal, step, since, until_ms = ARGV[6], ARGV[7], ARGV[8], ARGV[9], ARGV[10], ARGV[11]
local longest_ms, known, never, notifications, notification = ARGV[12], ARGV[13], ARGV[14], ARGV[15], ARGV[16]
local limit_key, expires_at = ARGV[17], ARGV[18]
local first_field = 19

if not is_current_attempt(stream, active, leases, entry, attempt_name, fence_kind, fence_owner, fence_detail) then
  local seen = redis.call('HMGET', record, 'k', 'd')
  if seen[1] == attempt_name and seen[2] then return { 'done_before', seen[2], '0' } end
  return { 'stale' }
end
local now = now_ms()
if since == '' then
  since = string.format('%.0f', now)
  until_ms = longest_ms == '' and '0' or string.format('%.0f', now + tonumber(longest_ms))
end
local due_at = until_ms == '0' and never or until_ms
if signal ~= '-' then
  local stored = redis.call('LRANGE', signals, 0, -1)
  for place, text in ipairs(stored) do
    -- The newest is the first
    local number = ',' .. #stored - place + 1 .. ','
    if string.match(text, '^%d+ (%S+)') == signal and not string.find(known, number, 1, true) then
      due_at = string.format('%.0f', now)
      break
    end
  end
end
remove_entry(stream, active, leases, entry, attempt_name)
redis.call('DEL', record)
redis.call('HSET', record, 's', 'scheduled', 'p', priority, 'd', due_at, 'k', attempt_name,
  'g', until_ms .. ' ' .. since .. ' ' .. signal .. ' ' .. step, unpack(ARGV, first_field))
-- They stay for as long as the job waits
redis.call('PERSIST', checkpoint)
redis.call('PERSIST', signals)
if limit_key ~= '' then
  -- Another job with the key may start now
  redis.call('ZREM', admitted, id)
  set_due(timers, 'key ' .. limit_key, now + 1000, notifications, notification, 'LT')
end
expire_at(timers, id, expires_at, notifications, notification)
set_due(due, id, tonumber(due_at), notifications, notification)
return { 'done', due_at, tonumber(due_at) <= now and '1' or '0' }
