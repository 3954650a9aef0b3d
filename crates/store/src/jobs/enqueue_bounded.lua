#!lua
-- Adds a job to a queue that has a depth limit.
-- KEYS: 1 stats, 2 the job's stream, then every other stream of the queue
-- ARGV: 1 most waiting jobs, 2.. fields and values of the entry
-- Returns the entry's id, "full", or nil when the stream does not exist.
-- Twice means two jobs, as with a plain XADD: the caller repeats it only when nothing was written.
if redis.call('EXISTS', KEYS[2]) == 0 then return false end
if waiting_in(2, KEYS[1]) >= tonumber(ARGV[1]) then return 'full' end
return redis.call('XADD', KEYS[2], '*', unpack(ARGV, 2))
