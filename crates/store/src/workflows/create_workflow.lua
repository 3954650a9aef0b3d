#!lua
-- Stores a workflow. The caller creates its jobs afterwards.
-- KEYS: 1 workflow
-- ARGV: 1.. fields and values, at most 4030
-- Returns 1, or 0 when a workflow with this id exists.
-- May run twice: the second run finds the workflow.
local workflow = KEYS[1]
local first_field = 1

if redis.call('EXISTS', workflow) == 1 then return 0 end
redis.call('HSET', workflow, unpack(ARGV, first_field))
return 1
