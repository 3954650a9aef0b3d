#!lua
-- Saves the checkpoint of a job, from which its next attempt goes on. A save of a pulled job is a sign of life: its lease is
-- renewed, but not past its deadline.
-- KEYS: 1 stream, 2 active, 3 leases, 4 record, 5 checkpoint
-- ARGV: 1 entry, 2 attempt name, 3 to 5 fence: kind, owner, detail (see fence.lua), or of a job that nobody runs "waiting",
--       where the caller saw it ("entry" or "record") and the state of its record, 6 the number of the save, or 0 for the
--       next one, 7 the time in ms, 8 TTL in ms, 9 the state, 10 notification channel, 11 notification (due), 12 when a
--       lease starts by the caller's knowledge of the clock
-- Returns the number of the save; 0 when the attempt is not the current one, or the job is not where the caller saw it; the
-- number of the stored save with a minus when that is greater: this one is late, and nothing changes.
-- May run twice: with a number the second run stores the same, without one the same under the next number.
local stream, active, leases, record, checkpoint = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local entry, attempt_name, fence_kind, fence_owner, fence_detail = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local sequence, saved_at, ttl_ms, state = tonumber(ARGV[6]), ARGV[7], ARGV[8], ARGV[9]
local notifications, due_notification, expected_start = ARGV[10], ARGV[11], ARGV[12]

if fence_kind == 'waiting' then
  local seen = { kind = fence_owner, entry = entry, consumer = '', state = fence_detail }
  if not is_where_seen(stream, record, seen) then return 0 end
elseif not is_current_attempt(stream, active, leases, entry, attempt_name, fence_kind, fence_owner, fence_detail) then
  return 0
end
local stored = tonumber(string.match(redis.call('GETRANGE', checkpoint, 0, 20), '^%d+') or '0')
if sequence == 0 then sequence = stored + 1 end
if sequence < stored then return -stored end
redis.call('SET', checkpoint, string.format('%d %s ', sequence, saved_at) .. state, 'PX', ttl_ms)
if fence_kind == 'pull' then
  renew_lease(active, leases, attempt_name, expected_start, notifications, due_notification)
end
return sequence
