#!lua
-- Adds a job to a queue that has a max depth.
-- KEYS: 1 stats, 2 the job's stream, then every other stream of the queue
-- ARGV: 1 max waiting jobs, 2.. fields and values of the entry
-- Returns the entry's id, "full", or nil when the stream does not exist.
-- Must not run twice: two runs add two jobs, as two XADD do. The caller repeats it only when Redis wrote nothing.
local stats, stream = KEYS[1], KEYS[2]
local first_stream = 2
local max_waiting = tonumber(ARGV[1])
local first_field = 2

if redis.call('EXISTS', stream) == 0 then return false end
if count_waiting(first_stream, stats) >= max_waiting then return 'full' end
return redis.call('XADD', stream, '*', unpack(ARGV, first_field))
