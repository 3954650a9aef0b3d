#!lua
-- Lets a subscription go on somewhere else in a channel. Whoever delivers it in order loses the channel.
-- KEYS: 1 history, 2 cursor, 3 state of the channel
-- ARGV: 1 group, 2 position to go on behind, or '' for the newest, 3 TTL of the cursor in ms, 4 messages that are given up in one
--       call
-- Returns {position, 1 if messages before it are still handed out: then it is to be called again}, or nil if there is no
-- history.
-- May run twice: it goes to the same place.
if redis.call('EXISTS', KEYS[1]) == 0 then
  redis.call('DEL', KEYS[2])
  return false
end
local position = ARGV[2]
if position == '' then position = newest_ever(KEYS[1]) end
redis.call('HSET', KEYS[2], 'd', position)
redis.call('HDEL', KEYS[2], 'o', 'u', 'n', 'w', 'e', 'g')
redis.call('HINCRBY', KEYS[2], 'k', 1)
redis.call('PEXPIRE', KEYS[2], ARGV[3])
redis.call('HSET', KEYS[3], 's', '1')
local moved = redis.pcall('XGROUP', 'SETID', KEYS[1], ARGV[1], position)
if type(moved) == 'table' and moved.err then redis.call('XGROUP', 'CREATE', KEYS[1], ARGV[1], position) end
-- What is handed out and lies before is done with
local pending = redis.call('XPENDING', KEYS[1], ARGV[1], '-', position, ARGV[4])
for _, item in ipairs(pending) do redis.call('XACK', KEYS[1], ARGV[1], item[1]) end
return { position, #pending == tonumber(ARGV[4]) and 1 or 0 }
