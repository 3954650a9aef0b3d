#!lua
-- Creates the stream of a queue's priority with its consumer group, and notifies waiting workers.
-- KEYS: 1 priorities, 2 stream
-- ARGV: 1 priority, 2 notification channel, 3 notification
-- Returns 1 when the priority is new, else 0.
-- May run twice: the second run finds the stream, the group and the priority.
local priorities, stream = KEYS[1], KEYS[2]
local priority, notifications, notification = ARGV[1], ARGV[2], ARGV[3]

local is_new, failure = open_stream(priorities, stream, priority)
if failure then return failure end
if is_new then redis.pcall('PUBLISH', notifications, notification) end
return is_new and 1 or 0
