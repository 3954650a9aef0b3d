#!lua flags=allow-oom
-- Lets no job with the key of a running one in before some time: what it wanted to use said so.
-- KEYS: 1 stream, 2 active, 3 leases, 4 limit
-- ARGV: 1 entry, 2 member, 3 kind, 4 a, 5 b (see fence.lua), 6 until ms
-- Returns 1, or 0 when the attempt is no longer the current one.
-- May run twice: the time is set.
if not held(KEYS[1], KEYS[2], KEYS[3], ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]) then return 0 end
redis.call('HSET', KEYS[4], 'until', ARGV[6])
redis.call('PEXPIRE', KEYS[4], 2592000000)
return 1
