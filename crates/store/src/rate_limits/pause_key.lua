#!lua flags=allow-oom
-- Admits no job with a key before a given time. A running job with the key asks for it, for example when the service that
-- it calls answers "too many requests".
-- KEYS: 1 stream, 2 active, 3 leases, 4 limit of the key
-- ARGV: 1 entry, 2 attempt name, 3 to 5 fence: kind, owner, detail (see fence.lua), 6 ms until which the key is paused, 7 max
--       ms that a pause lasts
-- Returns 1, or 0 when the attempt is not the current one.
-- May run twice: it sets the time.
local stream, active, leases, limit = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local entry, attempt_name, fence_kind, fence_owner, fence_detail = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local paused_until, max_pause_ms = tonumber(ARGV[6]), tonumber(ARGV[7])

if not is_current_attempt(stream, active, leases, entry, attempt_name, fence_kind, fence_owner, fence_detail) then
  return 0
end
local now = now_ms()
paused_until = math.min(paused_until, now + max_pause_ms)
redis.call('HSET', limit, 'until', string.format('%.0f', paused_until), 'paused', string.format('%.0f', now))
redis.call('PEXPIRE', limit, 2592000000)
return 1
