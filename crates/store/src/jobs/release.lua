#!lua flags=allow-oom
-- Ends an attempt without an outcome and makes the job available again: its worker released it, or its lease expired.
-- KEYS: 1 stream, 2 active, 3 leases, 4 record, 5 priorities, 6 timers
-- ARGV: 1 entry, 2 attempt name, 3 to 5 fence: kind, owner, detail (see fence.lua), 6 id, 7 priority,
--       8 notification channel, 9 notification (stream), 10 ms at which the job expires or "", 11 notification (due),
--       12.. fields and values of the job
-- Returns "done", "done_before" when an earlier run of this call did it, or "stale" when the attempt is not the current
-- one.
-- May run twice: the record names the attempt that released the job.
local stream, active, leases, record, priorities, timers = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local entry, attempt_name, fence_kind, fence_owner, fence_detail = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local id, priority, notifications, stream_notification = ARGV[6], ARGV[7], ARGV[8], ARGV[9]
local expires_at, due_notification = ARGV[10], ARGV[11]
local first_field = 12

if not is_current_attempt(stream, active, leases, entry, attempt_name, fence_kind, fence_owner, fence_detail) then
  if redis.call('HGET', record, 'k') == attempt_name then return 'done_before' end
  return 'stale'
end
local fields = { 'i', id, unpack(ARGV, first_field) }
local new_entry = add_entry(stream, priorities, priority, notifications, stream_notification, fields)
remove_entry(stream, active, leases, entry, attempt_name)
note_entry(record, priority, new_entry)
redis.call('HSET', record, 'k', attempt_name)
expire_at(timers, id, expires_at, notifications, due_notification)
return 'done'
