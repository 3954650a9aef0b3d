#!lua flags=allow-oom
-- Keeps a note of a job's end in the place of its result.
-- KEYS: 1 result
-- ARGV: 1 note, 2 its TTL in ms
-- Returns 1, or 0 when the job has no result any more.
-- May run twice: the second run finds the note and stores it again.
local result = KEYS[1]
local note, ttl_ms = ARGV[1], ARGV[2]

local first_line = string.match(redis.call('GETRANGE', result, 0, 99), '^[^\n]*\n')
if not first_line then return 0 end
redis.call('SET', result, first_line .. note, 'PX', ttl_ms)
return 1
