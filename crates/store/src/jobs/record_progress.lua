#!lua flags=allow-oom
-- Notes how far a job that a queue-worker runs has come.
-- KEYS: 1 stream, 2 active, 3 leases
-- ARGV: 1 entry, 2 member, 3 consumer, 4 progress as JSON
-- Returns 1, or 0 when the attempt is no longer the current one.
-- May run twice: the progress is set.
if not held(KEYS[1], KEYS[2], KEYS[3], ARGV[1], ARGV[2], 'worker', ARGV[3], '0') then return 0 end
redis.call('HSET', KEYS[2], 'p:' .. ARGV[2], ARGV[4])
return 1
