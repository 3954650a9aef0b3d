#!lua
-- Gives subscriptions their groups on a channel that is new, or whose history began anew.
-- KEYS: 1 history, 2 state of the channel, 3.. cursors
-- ARGV: 1 TTL of a cursor in ms, 2.. group and position to begin behind, for each cursor
-- Returns how many groups were made; none without a history.
-- May run twice: a cursor or a group that is there stays where it is.
local made = 0
if redis.call('EXISTS', KEYS[1]) == 0 then return made end
redis.call('HSET', KEYS[2], 's', '1')
for number = 3, #KEYS do
  local group, position = ARGV[2 * number - 4], ARGV[2 * number - 3]
  redis.call('HSETNX', KEYS[number], 'd', position)
  redis.call('PEXPIRE', KEYS[number], ARGV[1])
  local created = redis.pcall('XGROUP', 'CREATE', KEYS[1], group, redis.call('HGET', KEYS[number], 'd'))
  if type(created) ~= 'table' or not created.err then
    made = made + 1
  elseif not string.find(created.err, 'BUSYGROUP', 1, true) then
    return redis.error_reply(created.err)
  end
end
return made
