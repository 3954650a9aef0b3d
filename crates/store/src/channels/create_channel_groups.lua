#!lua
-- Creates the consumer groups of subscriptions on a channel whose history has just started or started again.
-- KEYS: 1 history, 2 state of the channel, 3.. cursors
-- ARGV: 1 TTL of a cursor in ms, 2.. group and position to begin behind, for each cursor
-- Returns how many groups were made; none without a history.
-- May run twice: a cursor or a group that is there stays where it is.
local history, state = KEYS[1], KEYS[2]
local cursor_ttl_ms = ARGV[1]
local FIRST_CURSOR = 3

local made = 0
if redis.call('EXISTS', history) == 0 then return made end
-- Spares what the groups need from trimming
redis.call('HSET', state, 's', '1')
local delivered = last_delivered_ids(history)
for number = FIRST_CURSOR, #KEYS do
  local group, position = ARGV[2 * (number - FIRST_CURSOR) + 2], ARGV[2 * (number - FIRST_CURSOR) + 3]
  local joined, problem = join_group(history, KEYS[number], group, position, cursor_ttl_ms, delivered)
  if problem then return problem end
  if joined.is_made then created = created + 1 end
end
return created
