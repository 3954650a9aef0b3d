#!lua
-- Stores a workflow. The caller creates its jobs afterwards.
-- KEYS: 1 workflow
-- ARGV: 1 step of another workflow that it is, as it is stored, or "", 2.. fields and values, at most 4050
-- Returns 1, or 2 when the workflow of this very step exists, or 0 when another workflow with this id does.
-- May run twice: the second run finds the workflow.
local workflow = KEYS[1]
local parent = ARGV[1]
local first_field = 2

if redis.call('EXISTS', workflow) == 1 then
  return parent ~= '' and redis.call('HGET', workflow, 'm') == parent and 2 or 0
end
redis.call('HSET', workflow, unpack(ARGV, first_field))
return 1
