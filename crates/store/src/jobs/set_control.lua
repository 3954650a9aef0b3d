#!lua flags=allow-oom
-- Changes the controls of a queue and notifies its workers: they may have to claim without blocking from now on, or no
-- longer. Operators must be able to do it when Redis is out of memory.
-- KEYS: 1 control
-- ARGV: 1 notification channel, 2 notification, 3 number of fields to remove, 4.. these fields, then fields and values
-- Returns 1.
-- May run twice: it sets the same values again.
local control = KEYS[1]
local notifications, notification, removed_count = ARGV[1], ARGV[2], tonumber(ARGV[3])
local fields = { unpack(ARGV, 4) }

for number = 1, removed_count do redis.call('HDEL', control, fields[number]) end
for number = removed_count + 1, #fields, 2 do redis.call('HSET', control, fields[number], fields[number + 1]) end
redis.pcall('PUBLISH', notifications, notification)
return 1
