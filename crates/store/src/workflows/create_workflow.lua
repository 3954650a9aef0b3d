#!lua
-- Stores a workflow. Its jobs come after.
-- KEYS: 1 workflow
-- ARGV: 1.. fields and values, at most 2030
-- Returns 1, or 0 when there is one with that id.
-- May run twice: the second run finds it.
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
redis.call('HSET', KEYS[1], unpack(ARGV))
return 1
