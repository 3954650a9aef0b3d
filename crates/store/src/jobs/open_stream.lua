#!lua
-- Creates the stream of a queue's priority with its consumer group, and notifies waiting workers.
-- KEYS: 1 priorities, 2 stream
-- ARGV: 1 priority, 2 notification channel, 3 notification
-- Returns 1 when the priority is new, else 0.
-- May run twice: the second run finds the stream, the group and the priority.
local priorities, stream = KEYS[1], KEYS[2]
local priority, notifications, notification = ARGV[1], ARGV[2], ARGV[3]

local created = redis.pcall('XGROUP', 'CREATE', stream, 'workers', '0', 'MKSTREAM')
if created.err and not string.find(created.err, 'BUSYGROUP', 1, true) then
  return redis.error_reply(created.err)
end
local is_new = redis.call('SADD', priorities, priority)
if is_new == 1 then redis.pcall('PUBLISH', notifications, notification) end
return is_new
