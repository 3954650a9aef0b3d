#!lua flags=allow-oom
-- Notes how many jobs of a workflow were created.
-- KEYS: 1 workflow
-- ARGV: 1 index before which all jobs that must exist do, or 0 in a DAG, 2.. the indexes of those that exist in a DAG
-- Returns the state of the workflow if it ended, "gone" when it does not exist, else "".
-- May run twice: the index only grows.
local workflow = KEYS[1]
local created = ARGV[1]
local first_index = 2

local known = redis.call('HMGET', workflow, 'y', 'n', 's')
if not known[1] then return 'gone' end
if tonumber(created) > tonumber(known[2] or '0') then redis.call('HSET', workflow, 'n', created) end
for i = first_index, #ARGV do redis.call('HSET', workflow, 'i' .. ARGV[i], '1') end
return known[3] or ''
