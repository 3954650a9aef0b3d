#!lua flags=allow-oom
-- Removes the stream of a priority that had no job for a while, so that nobody reads it any more. A queue keeps one stream.
-- KEYS: 1 priorities, 2 stream
-- ARGV: 1 priority, 2 ms without a new job
-- Returns 1 when it was removed, else 0.
-- May run twice: the second run finds no stream.
local priorities, stream = KEYS[1], KEYS[2]
local priority, idle_ms = ARGV[1], tonumber(ARGV[2])

if redis.call('SCARD', priorities) < 2 then return 0 end
if redis.call('EXISTS', stream) == 0 then return redis.call('SREM', priorities, priority) end
if redis.call('XLEN', stream) > 0 then return 0 end
local last_at = tonumber(string.match(last_id(stream), '^(%d+)'))
if last_at + idle_ms > now_ms() then return 0 end
redis.call('DEL', stream)
redis.call('SREM', priorities, priority)
return 1
