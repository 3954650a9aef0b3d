#!lua
-- Turns an element that was moved off a list into a job.
-- KEYS: 1 elements in transit, 2 stream
-- ARGV: 1 element, 2.. fields and values of the job
-- Returns the entry, "gone" when another worker turned the element into a job, or nil when the stream does not exist.
-- May run twice: each run that adds a job removes one such element first.
local in_transit, stream = KEYS[1], KEYS[2]
local element = ARGV[1]
local first_field = 2

if redis.call('EXISTS', stream) == 0 then return false end
if redis.call('LREM', in_transit, 1, element) == 0 then return 'gone' end
return redis.call('XADD', stream, '*', unpack(ARGV, first_field))
