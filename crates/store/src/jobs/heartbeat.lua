#!lua flags=allow-oom
-- Renews the lease of a job that was fetched over HTTP, for its full length but never past its deadline, and notes how
-- far it has come.
-- KEYS: 1 stream, 2 active, 3 leases
-- ARGV: 1 entry, 2 member, 3 token or "", 4 worker or "", 5 progress as JSON or ""
-- Returns 1, or 0 when the attempt is no longer the current one.
-- May run twice: the lease is set, not added to.
if not held(KEYS[1], KEYS[2], KEYS[3], ARGV[1], ARGV[2], 'pull', ARGV[3], ARGV[4]) then return 0 end
local attempt = attempt_of(KEYS[2], ARGV[2])
local due = now_ms() + attempt.lease
if attempt.deadline > 0 and attempt.deadline < due then due = attempt.deadline end
redis.call('ZADD', KEYS[3], 'XX', due, ARGV[2])
if ARGV[5] ~= '' then redis.call('HSET', KEYS[2], 'p:' .. ARGV[2], ARGV[5]) end
return 1
