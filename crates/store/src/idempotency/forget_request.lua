#!lua flags=allow-oom
-- Ends a request with an idempotency key that had no effect. The key is free again when no other such request may have
-- had one: each that runs, was cut off or was answered keeps it.
-- KEYS: 1 request
-- ARGV: 1 seed of the request
-- Returns 1 when the key is free, else 0.
-- May run twice: then the key may be free while an equal request runs. The caller does not repeat it.
local request = KEYS[1]
local seed = ARGV[1]

local known = redis.call('HMGET', request, 'seed', 'status')
if known[1] ~= seed or known[2] then return 0 end
if redis.call('HINCRBY', request, 'running', -1) > 0 then return 0 end
return redis.call('DEL', request)
