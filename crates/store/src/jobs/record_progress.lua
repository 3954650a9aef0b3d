#!lua flags=allow-oom
-- Stores the progress of a job that a queue-worker runs.
-- KEYS: 1 stream, 2 active, 3 leases
-- ARGV: 1 entry, 2 attempt name, 3 consumer, 4 progress as JSON
-- Returns 1, or 0 when the attempt is not the current one.
-- May run twice: it sets the progress.
local stream, active, leases = KEYS[1], KEYS[2], KEYS[3]
local entry, attempt_name, consumer, progress = ARGV[1], ARGV[2], ARGV[3], ARGV[4]

if not is_current_attempt(stream, active, leases, entry, attempt_name, 'worker', consumer, '0') then return 0 end
redis.call('HSET', active, 'p:' .. attempt_name, progress)
return 1
