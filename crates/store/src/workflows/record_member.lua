#!lua flags=allow-oom
-- Records how a member of a workflow ended, a job or a workflow. The first record of a member stays.
-- KEYS: 1 workflow
-- ARGV: 1 index, 2 state, 3 result or "", 4 result to store instead if there is no room, 5 max bytes of all results,
-- 6 traceparent of the attempt that ended it, if that is recorded, or ""
-- Returns {kind, members, members that ended, state if the workflow ended or "", what the next step of a chain needs:
-- {its job, bytes of all results, traceparent or nil, what is stored beside it or nil}, or nil if it must not start now or is
-- a workflow}, or {} when the workflow or the job does not exist.
-- May run twice: the second run changes nothing, and leaves the next step to whatever reads the workflow.
local workflow = KEYS[1]
local index, state, result, short_result, max_result_bytes = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local attempt = ARGV[6]

local next_index = string.format('%.0f', tonumber(index) + 1)
local known = redis.call(
  'HMGET', workflow, 'y', 't', 'j' .. index, 'e' .. index, 'k', 's', 'b', 'n', 'c', 'j' .. next_index, 'x', 'w'
)
local kind, members, job, recorded = known[1], tonumber(known[2] or ''), known[3], known[4]
local ended, end_state, result_bytes = tonumber(known[5] or '0'), known[6] or '', tonumber(known[7] or '0')
local started, traceparent, next_job, trace_rest = known[8], known[9], known[10], known[11]
local nested = known[12]
if not kind or not members or not job then return {} end
if recorded then return { kind, members, ended, end_state, false } end

local changes = { 'e' .. index, state }
-- Callbacks come after the members
if tonumber(index) < members then
  ended = ended + 1
  changes[#changes + 1] = 'k'
  changes[#changes + 1] = string.format('%.0f', ended)
  -- The callbacks of a batch and the jobs of a DAG follow from many jobs; the step of a chain learns of the one before it
  -- at once
  if (kind == 'batch' or kind == 'dag') and attempt ~= '' then
    changes[#changes + 1] = 'p' .. index
    changes[#changes + 1] = attempt
  end
end
if result ~= '' then
  local stored = result_bytes + #result > max_result_bytes and short_result or result
  result_bytes = result_bytes + #stored
  for _, change in ipairs({ 'b', string.format('%.0f', result_bytes), 'r' .. index, stored }) do
    changes[#changes + 1] = change
  end
end
redis.call('HSET', workflow, unpack(changes))
-- Otherwise it exists, or did
local is_nested = nested and (',' .. nested .. ','):find(',' .. next_index .. ',', 1, true)
local is_next = kind == 'chain' and not is_nested and state == 'completed' and end_state == '' and started == next_index and next_job
return { kind, members, ended, end_state, is_next and { next_job, result_bytes, traceparent, trace_rest } }
