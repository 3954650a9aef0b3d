#!lua flags=allow-oom
-- Pauses a queue or resumes it, for one of two reasons: an operator paused it ("1"), or the installation is in maintenance mode
-- ("m"). It stays paused as long as one of them holds. Workers are notified.
-- KEYS: 1 control
-- ARGV: 1 reason, 2 "1" to pause, 3 notification channel, 4 notification
-- Returns 1.
-- May run twice: it sets the same value again.
local control = KEYS[1]
local reason, pauses, notifications, notification = ARGV[1], ARGV[2] == '1', ARGV[3], ARGV[4]

local reasons = string.gsub(redis.call('HGET', control, 'paused') or '', reason, '')
if pauses then reasons = reasons .. reason end
if reasons == '' then
  redis.call('HDEL', control, 'paused')
else
  redis.call('HSET', control, 'paused', reasons)
end
redis.pcall('PUBLISH', notifications, notification)
return 1
