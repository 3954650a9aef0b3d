#!lua
-- Makes the stream of a queue's priority, with its consumer group, and tells waiting workers of it.
-- KEYS: 1 priorities, 2 stream
-- ARGV: 1 priority, 2 wake channel, 3 wake message
-- Returns 1 when the priority is new, else 0.
-- May run twice: everything is there the second time.
local made = redis.pcall('XGROUP', 'CREATE', KEYS[2], 'workers', '0', 'MKSTREAM')
if made.err and not string.find(made.err, 'BUSYGROUP', 1, true) then
  return redis.error_reply(made.err)
end
local new = redis.call('SADD', KEYS[1], ARGV[1])
if new == 1 then redis.call('PUBLISH', ARGV[2], ARGV[3]) end
return new
