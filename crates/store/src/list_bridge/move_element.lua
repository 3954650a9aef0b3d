#!lua
-- Turns an element that was moved off a list into a job.
-- KEYS: 1 elements on their way, 2 stream
-- ARGV: 1 element, 2.. fields and values of the job
-- Returns the entry, "gone" when another worker did it, or nil when the stream does not exist.
-- May run twice: an element is removed once for each job that is made of it.
if redis.call('EXISTS', KEYS[2]) == 0 then return false end
if redis.call('LREM', KEYS[1], 1, ARGV[1]) == 0 then return 'gone' end
return redis.call('XADD', KEYS[2], '*', unpack(ARGV, 2))
