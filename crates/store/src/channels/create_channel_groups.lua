#!lua flags=allow-oom
-- Creates the consumer groups of subscriptions on a channel whose history has just started or started again.
-- KEYS: 1 history, 2 state of the channel, 3.. cursors
-- ARGV: 1 TTL of a cursor in ms, 2.. for each cursor its group, the position after which it starts, and when its
--       subscription was created, in ms
-- Returns how many groups were created: 0 when the channel has no history.
-- May run twice: a cursor or a group that exists stays where it is.
local history, state = KEYS[1], KEYS[2]
local cursor_ttl_ms = ARGV[1]
local first_cursor = 3
local first_group = 2

local created = 0
if redis.call('EXISTS', history) == 0 then return created end
-- Keeps trim_channel.lua from removing what the groups need
redis.call('HSET', state, 's', '1')
local delivered = last_delivered_ids(history)
for number = first_cursor, #KEYS do
  local index = first_group + 3 * (number - first_cursor)
  local group, position, created_at = ARGV[index], ARGV[index + 1], ARGV[index + 2]
  local joined, problem =
    join_group(history, KEYS[number], group, position, cursor_ttl_ms, delivered, created_at, true)
  if problem then return problem end
  if joined.is_made then created = created + 1 end
end
return created
