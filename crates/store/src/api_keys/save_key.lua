#!lua flags=allow-oom
-- Stores or removes an API key, if the old one is stored as the caller read it, and notifies the gateways. Operators must
-- be able to do it when Redis is out of memory.
-- KEYS: 1 keys, 2 last uses
-- ARGV: 1 id, 2 key as the caller read it or "" for none, 3 new key or "" to remove it, 4 max keys,
--       5 notification channel, 6 notification
-- Returns "saved", "already_saved" when the new key is stored already, "changed" when another one is stored, or "full"
-- when there is no room for another key.
-- May run twice: the second run finds the new key.
local keys, last_uses = KEYS[1], KEYS[2]
local id, known_key, new_key = ARGV[1], ARGV[2], ARGV[3]
local max_keys, notifications, notification = ARGV[4], ARGV[5], ARGV[6]

local refusal = compare_and_set(keys, id, known_key, new_key, max_keys)
if refusal then return refusal end
if new_key == '' then
  redis.call('HDEL', keys, id)
  redis.call('HDEL', last_uses, id)
else
  redis.call('HSET', keys, id, new_key)
end
redis.pcall('PUBLISH', notifications, notification)
return 'saved'
