#!lua flags=allow-oom
-- Does what a worker does with each job and message: adds an entry, claims it, acknowledges it, deletes it.
-- KEYS: 1 stream, in no other use
-- ARGV: none
-- Returns 1 when the entry that was added was claimed and acknowledged, else 0.
-- May run twice: each run begins without the stream and leaves none.
local stream = KEYS[1]

redis.call('DEL', stream)
redis.call('XGROUP', 'CREATE', stream, 'w', '0', 'MKSTREAM')
local added = redis.call('XADD', stream, '*', 'i', 'check')
local claimed = redis.call('XREADGROUP', 'GROUP', 'w', 'check', 'COUNT', 1, 'STREAMS', stream, '>')
local is_claimed = claimed and claimed[1][2][1][1] == added
local acknowledged = redis.call('XACK', stream, 'w', added)
redis.call('DEL', stream)
return is_claimed and acknowledged or 0
