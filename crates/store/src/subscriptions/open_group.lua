#!lua
-- Lets a subscription read a channel: notes where it is, and gives it its consumer group there.
-- KEYS: 1 history, 2 cursor, 3 state of the channel
-- ARGV: 1 group, 2 position to begin behind or '' for the newest, 3 TTL of the cursor in ms
-- Returns {position, 1 if the group was lost}, or nil if there is no history yet: then there is nothing to miss.
-- May run twice: a cursor that is there stays where it is.
if redis.call('EXISTS', KEYS[1]) == 0 then return false end
local position = ARGV[2]
if position == '' then position = newest_ever(KEYS[1]) end
-- Spares what the group needs from trimming
redis.call('HSET', KEYS[3], 's', '1')
local joined, problem = join_group(KEYS[1], KEYS[2], ARGV[1], position, ARGV[3], last_given(KEYS[1]))
if problem then return problem end
return { joined.position, joined.is_made and not joined.is_new and 1 or 0 }
