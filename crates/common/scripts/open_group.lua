#!lua
-- Lets a subscription read a channel: notes where it is, and gives it its consumer group there. A cursor that is gone is made again
-- where the group is, which knows what was handed out as well.
-- KEYS: 1 history, 2 cursor, 3 state of the channel
-- ARGV: 1 group, 2 position to begin behind or '' for the newest, 3 TTL of the cursor in ms
-- Returns {position, 1 if the group was lost}, or nil if there is no history yet: then there is nothing to miss.
-- May run twice: a cursor that is there stays where it is.
local function last_given(history, group)
  for _, info in ipairs(redis.call('XINFO', 'GROUPS', history)) do
    local fields = {}
    for i = 1, #info, 2 do fields[info[i]] = info[i + 1] end
    if fields['name'] == group then return fields['last-delivered-id'] end
  end
end

if redis.call('EXISTS', KEYS[1]) == 0 then return false end
local position = ARGV[2]
if position == '' then position = newest_ever(KEYS[1]) end
-- A group that outlived its cursor is where the subscription was
local is_new = redis.call('HSETNX', KEYS[2], 'd', last_given(KEYS[1], ARGV[1]) or position)
position = redis.call('HGET', KEYS[2], 'd')
redis.call('PEXPIRE', KEYS[2], ARGV[3])
-- Spares what the group needs from trimming
redis.call('HSET', KEYS[3], 's', '1')
local created = redis.pcall('XGROUP', 'CREATE', KEYS[1], ARGV[1], position)
if type(created) == 'table' and created.err then
  if not string.find(created.err, 'BUSYGROUP', 1, true) then return redis.error_reply(created.err) end
  return { position, 0 }
end
return { position, is_new == 1 and 0 or 1 }
