#!lua
-- Records when an API key was last used, if it exists.
-- KEYS: 1 keys, 2 last uses
-- ARGV: 1 id, 2 time in ms
-- Returns 1, or 0 when there is no such key or a later use is recorded.
-- May run twice: it records the same time again.
local keys, last_uses = KEYS[1], KEYS[2]
local id, at = ARGV[1], ARGV[2]

if redis.call('HEXISTS', keys, id) == 0 then return 0 end
if tonumber(redis.call('HGET', last_uses, id) or '0') >= tonumber(at) then return 0 end
redis.call('HSET', last_uses, id, at)
return 1
