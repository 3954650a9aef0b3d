#!lua flags=allow-oom
-- Moves a subscription to another position of a channel. A worker that delivers the channel in order loses it.
-- KEYS: 1 history, 2 cursor, 3 state of the channel
-- ARGV: 1 group, 2 position after which it continues, or '' for the last one, 3 TTL of the cursor in ms, 4 max pending
--       messages to drop in one call, 5 when the subscription was created, in ms
-- Returns {position, 1 if messages before it may still be pending: then the caller calls again}, or nil when the
-- channel has no history.
-- May run twice: it moves to the same position.
local history, cursor, state = KEYS[1], KEYS[2], KEYS[3]
local group, position, cursor_ttl_ms, max_dropped = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local created_at = ARGV[5]

if redis.call('EXISTS', history) == 0 then
  redis.call('DEL', cursor)
  return false
end
if position == '' then position = last_id(history) end
redis.call('HSET', cursor, 'd', position, 'i', created_at)
redis.call('HDEL', cursor, 'o', 'u', 'n', 'w', 'wd', 'e', 'g', 'c')
redis.call('HINCRBY', cursor, 'k', 1)
redis.call('PEXPIRE', cursor, cursor_ttl_ms)
redis.call('HSET', state, 's', '1')
local moved = redis.pcall('XGROUP', 'SETID', history, group, position)
if type(moved) == 'table' and moved.err then redis.call('XGROUP', 'CREATE', history, group, position) end
-- The subscription no longer wants pending messages before the position
local pending = redis.call('XPENDING', history, group, '-', position, max_dropped)
for _, item in ipairs(pending) do redis.call('XACK', history, group, item[1]) end
return { position, #pending == max_dropped and 1 or 0 }
