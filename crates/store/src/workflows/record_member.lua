#!lua flags=allow-oom
-- Records how a job of a workflow ended. What is recorded first stays.
-- KEYS: 1 workflow
-- ARGV: 1 index, 2 state, 3 result or "", 4 what stands in for a result that finds no room, 5 most bytes of all results
-- Returns {kind, members, members that ended, state if it is over or ""}, or {} when there is no such workflow or job.
-- May run twice: the second run changes nothing.
local index = tonumber(ARGV[1])
local known = redis.call('HMGET', KEYS[1], 'y', 't', 'j' .. ARGV[1])
if not known[1] or not known[2] or not known[3] then return {} end
local total = tonumber(known[2])
if redis.call('HSETNX', KEYS[1], 'e' .. ARGV[1], ARGV[2]) == 1 then
  if index < total then redis.call('HINCRBY', KEYS[1], 'k', 1) end
  if ARGV[3] ~= '' then
    local kept = tonumber(redis.call('HGET', KEYS[1], 'b') or '0')
    local result = ARGV[3]
    if kept + #result > tonumber(ARGV[5]) then result = ARGV[4] end
    redis.call('HINCRBY', KEYS[1], 'b', #result)
    redis.call('HSET', KEYS[1], 'r' .. ARGV[1], result)
  end
end
local now = redis.call('HMGET', KEYS[1], 'k', 's')
return { known[1], total, tonumber(now[1] or '0'), now[2] or '' }
