#!lua
-- Lets a subscription read a channel: notes where it is, and gives it its consumer group there. A cursor that is gone is made again
-- where the group is, which knows what was handed out as well.
-- KEYS: 1 history, 2 cursor, 3 state of the channel
-- ARGV: 1 group, 2 position to begin behind or '' for the newest, 3 TTL of the cursor in ms
-- Returns {position, 1 if the group was lost}, or nil if there is no history yet: then there is nothing to miss.
-- May run twice: a cursor that is there stays where it is.
if redis.call('EXISTS', KEYS[1]) == 0 then return false end
local position = ARGV[2]
if position == '' then position = newest_ever(KEYS[1]) end
local is_new = redis.call('HEXISTS', KEYS[2], 'd') == 0
local has_group = false
for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local known = {}
  for i = 1, #group, 2 do known[group[i]] = group[i + 1] end
  if known['name'] == ARGV[1] then
    has_group = true
    position = known['last-delivered-id']
  end
end
if is_new then redis.call('HSET', KEYS[2], 'd', position) else position = redis.call('HGET', KEYS[2], 'd') end
redis.call('PEXPIRE', KEYS[2], ARGV[3])
-- Spares what the group needs from trimming
redis.call('HSET', KEYS[3], 's', '1')
if has_group then return { position, 0 } end
redis.call('XGROUP', 'CREATE', KEYS[1], ARGV[1], position)
return { position, is_new and 0 or 1 }
