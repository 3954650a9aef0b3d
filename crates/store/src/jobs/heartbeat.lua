#!lua flags=allow-oom
-- Renews the lease of a job that was fetched over HTTP, for its full length but not past its deadline, and stores its
-- progress.
-- KEYS: 1 stream, 2 active, 3 leases
-- ARGV: 1 entry, 2 attempt name, 3 token or "", 4 worker or "", 5 progress as JSON or "",
--       6 notification channel, 7 notification (due), 8 when a lease starts by the caller's knowledge of the clock
-- Returns 1, or 0 when the attempt is not the current one.
-- May run twice: it sets the lease and the progress, it does not add to them.
local stream, active, leases = KEYS[1], KEYS[2], KEYS[3]
local entry, attempt_name, token, worker, progress = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local notifications, due_notification, expected_start = ARGV[6], ARGV[7], ARGV[8]

if not is_current_attempt(stream, active, leases, entry, attempt_name, 'pull', token, worker) then return 0 end
renew_lease(active, leases, attempt_name, expected_start, notifications, due_notification)
if progress ~= '' then redis.call('HSET', active, 'p:' .. attempt_name, progress) end
return 1
