#!lua
-- Starts a request with an idempotency key, or returns what is known of it.
-- KEYS: 1 request
-- ARGV: 1 hash of its content, 2 seed if it is the first, 3 TTL in ms, 0 when there is no room for another request
-- Returns {"started", seed}, {"answered", status, answer}, {"reused"} when the key belongs to another request, or
-- {"no_room"}.
-- May run twice: the request then counts as running once more, and its key stays until its TTL is over.
local request = KEYS[1]
local content_hash, new_seed, ttl_ms = ARGV[1], ARGV[2], ARGV[3]

local known = redis.call('HMGET', request, 'content', 'seed', 'status', 'answer')
if not known[1] then
  if ttl_ms == '0' then return { 'no_room' } end
  redis.call('HSET', request, 'content', content_hash, 'seed', new_seed, 'running', 1)
  redis.call('PEXPIRE', request, ttl_ms)
  return { 'started', new_seed }
end
if known[1] ~= content_hash then return { 'reused' } end
if known[3] then return { 'answered', known[3], known[4] } end
redis.call('HINCRBY', request, 'running', 1)
-- What it made is found for as long as it is repeated
if ttl_ms ~= '0' then redis.call('PEXPIRE', request, ttl_ms, 'GT') end
return { 'started', known[2] }
