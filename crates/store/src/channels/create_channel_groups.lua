#!lua
-- Gives subscriptions their groups on a channel that is new, or whose history began anew.
-- KEYS: 1 history, 2 state of the channel, 3.. cursors
-- ARGV: 1 TTL of a cursor in ms, 2.. group and position to begin behind, for each cursor
-- Returns how many groups were made; none without a history.
-- May run twice: a cursor or a group that is there stays where it is.
local made = 0
if redis.call('EXISTS', KEYS[1]) == 0 then return made end
-- Spares what the groups need from trimming
redis.call('HSET', KEYS[2], 's', '1')
local given = last_given(KEYS[1])
for number = 3, #KEYS do
  local group, position = ARGV[2 * number - 4], ARGV[2 * number - 3]
  local joined, problem = join_group(KEYS[1], KEYS[number], group, position, ARGV[1], given)
  if problem then return problem end
  if joined.is_made then made = made + 1 end
end
return made
