#!lua flags=allow-oom
-- Records how a job of a workflow ended. The first record of a job stays.
-- KEYS: 1 workflow
-- ARGV: 1 index, 2 state, 3 result or "", 4 result to store instead if there is no room, 5 max bytes of all results
-- Returns {kind, members, members that ended, state if the workflow ended or ""}, or {} when the workflow or the job
-- does not exist.
-- May run twice: the second run changes nothing.
local workflow = KEYS[1]
local member, state, member_result, placeholder = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local max_result_bytes = tonumber(ARGV[5])

local index = tonumber(member)
local known = redis.call('HMGET', workflow, 'y', 't', 'j' .. member)
if not known[1] or not known[2] or not known[3] then return {} end
local total = tonumber(known[2])
if redis.call('HSETNX', workflow, 'e' .. member, state) == 1 then
  if index < total then redis.call('HINCRBY', workflow, 'k', 1) end
  if member_result ~= '' then
    local stored_bytes = tonumber(redis.call('HGET', workflow, 'b') or '0')
    local result = member_result
    if stored_bytes + #result > max_result_bytes then result = placeholder end
    redis.call('HINCRBY', workflow, 'b', #result)
    redis.call('HSET', workflow, 'r' .. member, result)
  end
end
local now = redis.call('HMGET', workflow, 'k', 's')
return { known[1], total, tonumber(now[1] or '0'), now[2] or '' }
