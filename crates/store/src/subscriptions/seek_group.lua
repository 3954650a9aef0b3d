#!lua
-- Lets a subscription go on somewhere else in a channel. A client that delivers it in order loses the channel.
-- KEYS: 1 history, 2 cursor, 3 state of the channel
-- ARGV: 1 group, 2 position to go on behind, or '' for the newest, 3 TTL of the cursor in ms, 4 messages that are given up in one
--       call
-- Returns {position, 1 if messages before it are still handed out: then it is to be called again}, or nil if there is no
-- history.
-- May run twice: it goes to the same place.
local history, cursor, state = KEYS[1], KEYS[2], KEYS[3]
local group, target_position, cursor_ttl_ms, max_acked = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])

if redis.call('EXISTS', history) == 0 then
  redis.call('DEL', cursor)
  return false
end
local position = target_position
if position == '' then position = last_id(history) end
redis.call('HSET', cursor, 'd', position)
redis.call('HDEL', cursor, 'o', 'u', 'n', 'w', 'e', 'g')
redis.call('HINCRBY', cursor, 'k', 1)
redis.call('PEXPIRE', cursor, cursor_ttl_ms)
redis.call('HSET', state, 's', '1')
local moved = redis.pcall('XGROUP', 'SETID', history, group, position)
if type(moved) == 'table' and moved.err then redis.call('XGROUP', 'CREATE', history, group, position) end
-- What is handed out and lies before is done with
local pending = redis.call('XPENDING', history, group, '-', position, max_acked)
for _, item in ipairs(pending) do redis.call('XACK', history, group, item[1]) end
return { position, #pending == max_acked and 1 or 0 }
