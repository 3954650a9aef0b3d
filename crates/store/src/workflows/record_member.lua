#!lua flags=allow-oom
-- Records how a job of a workflow ended. The first record of a job stays.
-- KEYS: 1 workflow
-- ARGV: 1 index, 2 state, 3 result or "", 4 result to store instead if there is no room, 5 max bytes of all results
-- Returns {kind, members, members that ended, state if the workflow ended or "", what the next step of a chain needs:
-- {its job, bytes of all results, traceparent or nil}, or nil if it must not start now}, or {} when the workflow or the
-- job does not exist.
-- May run twice: the second run changes nothing, and leaves the next step to whatever reads the workflow.
local workflow = KEYS[1]
local index, state, result, short_result, max_result_bytes = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])

local known = redis.call('HMGET', workflow, 'y', 't', 'j' .. index)
local kind, members, job = known[1], tonumber(known[2] or ''), known[3]
if not kind or not members or not job then return {} end
local is_first = redis.call('HSETNX', workflow, 'e' .. index, state) == 1
if is_first then
  -- Callbacks come after the members
  if tonumber(index) < members then redis.call('HINCRBY', workflow, 'k', 1) end
  if result ~= '' then
    local result_bytes = tonumber(redis.call('HGET', workflow, 'b') or '0')
    local stored = result
    if result_bytes + #result > max_result_bytes then stored = short_result end
    redis.call('HINCRBY', workflow, 'b', #stored)
    redis.call('HSET', workflow, 'r' .. index, stored)
  end
end
local now = redis.call('HMGET', workflow, 'k', 's')
local ended, end_state = tonumber(now[1] or '0'), now[2] or ''
local next_step = false
if is_first and kind == 'chain' and state == 'completed' and end_state == '' then
  local next_index = string.format('%.0f', tonumber(index) + 1)
  local step = redis.call('HMGET', workflow, 'n', 'j' .. next_index, 'b', 'c')
  -- Otherwise it exists, or did
  if step[1] == next_index and step[2] then next_step = { step[2], tonumber(step[3] or '0'), step[4] } end
end
return { kind, members, ended, end_state, next_step }
