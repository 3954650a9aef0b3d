#!lua flags=allow-oom
-- Lets a subscription read a channel: creates its cursor and its consumer group if they are missing.
-- KEYS: 1 history, 2 cursor, 3 state of the channel
-- ARGV: 1 group, 2 position after which it starts, or '' for the last one, 3 TTL of the cursor in ms, 4 when the
--       subscription was created, in ms, 5 "1" if the caller knows that it is the one that is stored
-- Returns {position, 1 if the group was lost}, {'other', 0} if the cursor belongs to another subscription of that name,
-- or nil when the channel has no history yet: then there is nothing to
-- miss.
-- May run twice: a cursor or a group that exists stays where it is.
local history, cursor, state = KEYS[1], KEYS[2], KEYS[3]
local group, position, cursor_ttl_ms, created_at = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local is_stored = ARGV[5] == '1'

if redis.call('EXISTS', history) == 0 then return false end
if position == '' then position = last_id(history) end
-- Keeps trim_channel.lua from removing what the group needs
redis.call('HSET', state, 's', '1')
local delivered = last_delivered_ids(history)
local joined, problem =
  join_group(history, cursor, group, position, cursor_ttl_ms, delivered, created_at, is_stored)
if problem then return problem end
if joined.is_other then return { 'other', 0 } end
-- A history that expired took its groups along, and lost nothing that the subscription had not read
local is_lost = joined.is_made and not joined.is_new and redis.call('HGET', state, 'p') ~= joined.position
return { joined.position, is_lost and 1 or 0 }
