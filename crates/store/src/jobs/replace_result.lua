#!lua flags=allow-oom
-- Changes what is stored of an ended job, for as long as it was going to be kept.
-- KEYS: 1 result
-- ARGV: 1 the result that the caller read, 2 the new one
-- Returns 1, or 0 when the result is another by now.
-- May run twice: the second run finds the new result.
local result = KEYS[1]
local known, wanted = ARGV[1], ARGV[2]

local found = redis.call('GET', result)
if found == wanted then return 1 end
if found ~= known then return 0 end
redis.call('SET', result, wanted, 'KEEPTTL')
return 1
