#!lua
-- Counts the jobs that arrays make in a workflow and in all that are nested in it.
-- KEYS: 1 workflow
-- ARGV: 1 id of the workflow that has the jobs, 2 their number, 3 max number in all
-- Returns 1, or 0 when they would be too many.
-- May run twice: the jobs of a workflow count once.
local workflow = KEYS[1]
local nested, jobs, max_jobs = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])

local field = 'v:' .. nested
local known = redis.call('HMGET', workflow, 'y', field, 'v')
-- A workflow that is gone bounds nothing: what it made ends by itself
if not known[1] or known[2] then return 1 end
local total = tonumber(known[3] or '0') + jobs
if total > max_jobs then return 0 end
redis.call('HSET', workflow, field, string.format('%.0f', jobs), 'v', string.format('%.0f', total))
return 1
