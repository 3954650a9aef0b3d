#!lua flags=allow-oom
-- Ends an attempt that failed and schedules the next one.
-- KEYS: 1 stream, 2 active, 3 leases, 4 record, 5 due, 6 stats, 7 timers, 8 admitted, 9 checkpoint
-- ARGV: 1 entry, 2 attempt name, 3 to 5 fence: kind, owner, detail (see fence.lua), 6 id, 7 priority, 8 delay in ms,
--       9 notification channel, 10 notification, 11 key of the limit or "", 12 ms at which the job expires or "",
--       13 consumer that gets the entry when Redis has no room for a record of the job, else "", 14 its lease in ms (a job
--       with a checkpoint gets a record all the same: without one nobody would read it),
--       15.. fields and values of the job
-- Returns {"done", due in ms}, {"postponed", due in ms} when the job stays in its entry as it was before the attempt,
-- {"done_before", due in ms} when an earlier run of this call did it, or {"stale"} when the
-- attempt is not the current one.
-- May run twice: the record names the attempt that failed.
local stream, active, leases, record = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local due, stats, timers, admitted, checkpoint = KEYS[5], KEYS[6], KEYS[7], KEYS[8], KEYS[9]
local entry, attempt_name, fence_kind, fence_owner, fence_detail = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local id, priority, delay_ms, notifications, notification = ARGV[6], ARGV[7], tonumber(ARGV[8]), ARGV[9], ARGV[10]
local limit_key, expires_at = ARGV[11], ARGV[12]
local postponed, postponed_ms = ARGV[13], ARGV[14]
local first_field = 15

if not is_current_attempt(stream, active, leases, entry, attempt_name, fence_kind, fence_owner, fence_detail) then
  local seen = redis.call('HMGET', record, 'k', 'd')
  if seen[1] == attempt_name and seen[2] then return { 'done_before', seen[2] } end
  return { 'stale' }
end
local now = now_ms()
if postponed ~= '' and redis.call('EXISTS', checkpoint) == 0 then
  redis.call('XCLAIM', stream, 'workers', postponed, 0, entry, 'JUSTID')
  redis.call('HDEL', active, attempt_name, 'p:' .. attempt_name)
  redis.call('ZREM', leases, attempt_name)
  return { 'postponed', string.format('%d', now + tonumber(postponed_ms)) }
end
local due_at = string.format('%d', now + delay_ms)
remove_entry(stream, active, leases, entry, attempt_name)
redis.call('DEL', record)
redis.call('HSET', record, 's', 'retryable', 'p', priority, 'd', due_at, 'y', delay_ms, 'k', attempt_name,
  unpack(ARGV, first_field))
redis.call('HINCRBY', stats, 'retried', 1)
redis.call('HINCRBY', stats, 'retryable', 1)
if limit_key ~= '' then
  -- Another job with the key may start now
  redis.call('ZREM', admitted, id)
  set_due(timers, 'key ' .. limit_key, now + 1000, notifications, notification, 'LT')
end
expire_at(timers, id, expires_at, notifications, notification)
set_due(due, id, now + delay_ms, notifications, notification)
return { 'done', due_at }
