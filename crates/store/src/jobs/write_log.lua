-- Adds lines to the log of a job that runs. Lines of a pulled job are a sign of life: its lease is renewed, but not past its
-- deadline.
-- KEYS: 1 stream, 2 active, 3 leases, 4 log
-- ARGV: 1 entry, 2 attempt name, 3 to 5 fence: kind, owner, detail (see fence.lua), 6 most lines, 7 TTL of the log in ms,
--       8 notification channel, 9 notification (due), 10 when a lease starts by the caller's knowledge of the clock,
--       11.. lines
-- Returns 1, or 0 when the attempt is not the current one.
-- May run twice: the second run adds the lines again, which people can see.
local stream, active, leases, log = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local entry, attempt_name, fence_kind, fence_owner, fence_detail = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local max_lines, ttl_ms, notifications, due_notification = ARGV[6], ARGV[7], ARGV[8], ARGV[9]
local expected_start = ARGV[10]
local first_line = 11

if not is_current_attempt(stream, active, leases, entry, attempt_name, fence_kind, fence_owner, fence_detail) then
  return 0
end
for i = first_line, #ARGV do redis.call('XADD', log, 'MAXLEN', max_lines, '*', 'd', ARGV[i]) end
redis.call('PEXPIRE', log, ttl_ms)
if fence_kind == 'pull' then
  renew_lease(active, leases, attempt_name, expected_start, notifications, due_notification)
end
return 1
