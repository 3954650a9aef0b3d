#!lua flags=allow-oom
-- Forgets a request with an Idempotency-Key that was refused, unless a repetition of it was answered meanwhile.
-- KEYS: 1 what became of the request
-- ARGV: 1 what stands there while it has not been answered
-- Returns 1, or 0 when there is something else or nothing.
-- May run twice: the second run finds nothing.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
