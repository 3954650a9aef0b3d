#!lua flags=allow-oom
-- Sets the limits of a queue, or of a partition, and notifies its workers. Operators must be able to do it when Redis is out
-- of memory.
-- KEYS: 1 control
-- ARGV: 1 notification channel, 2 notification, 3 jobs that run at once or "", 4 starts at once in a period or "", 5.. fields
--       and values
-- Returns 0, or the number of partitions when one of the limits is smaller: then nothing changed.
-- May run twice: it sets the same values again.
local control = KEYS[1]
local notifications, notification = ARGV[1], ARGV[2]
local concurrency, rate = tonumber(ARGV[3]) or 0, tonumber(ARGV[4]) or 0
local first_field = 5

local count = tonumber(redis.call('HGET', control, 'n') or '1')
if concurrency > 0 and concurrency < count or rate > 0 and rate < count then return count end
redis.call('HDEL', control, 'c', 'rl', 'rp', 'rb', 'rs', 'r', 'ra', 'pa')
for number = first_field, #ARGV, 2 do redis.call('HSET', control, ARGV[number], ARGV[number + 1]) end
redis.pcall('PUBLISH', notifications, notification)
return 0
