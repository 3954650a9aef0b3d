#!lua
-- Stores a workflow. The caller creates its jobs afterwards.
-- KEYS: 1 workflow
-- ARGV: 1.. fields and values, at most 2030
-- Returns 1, or 0 when there is one with that id.
-- May run twice: the second run finds it.
local workflow = KEYS[1]
local fields = ARGV

if redis.call('EXISTS', workflow) == 1 then return 0 end
redis.call('HSET', workflow, unpack(fields))
return 1
