#!lua flags=allow-oom
-- Lets the first job of a lane into its stream, if the limit of its key allows.
-- KEYS: 1 lane, 2 lanes, 3 held, 4 limit, 5 timers, 6 stats, 7 priorities, 8 the job's record, 9 its stream
-- ARGV: 1 key, 2 id that the caller saw first in the lane, 3 its priority, 4 wake channel, 5 wake message (stream),
--       6 wake message (due)
-- Returns "admitted", "wait" when the limit does not allow it now, "changed" when another job is first, or "empty".
-- May run twice: the second run finds another job first.
local lane, held, limit, timers = KEYS[1], KEYS[3], KEYS[4], KEYS[5]
local timer = 'lane ' .. ARGV[1]
local first = redis.call('ZRANGE', lane, 0, 0)[1]
if not first then
  redis.call('SREM', KEYS[2], ARGV[1])
  redis.call('ZREM', timers, timer)
  redis.call('PEXPIRE', limit, 2592000000)
  return 'empty'
end
if first ~= ARGV[2] then return 'changed' end

local now = now_ms()
local policy = redis.call('HMGET', limit, 'c', 'rl', 'rp', 'tl', 'tp', 'until', 'r', 'ra', 't', 'ta', 'seen')
for i = 1, #policy do policy[i] = tonumber(policy[i] or '') end
local concurrency, pause = policy[1], policy[6]

local function wait_until(at)
  redis.call('ZADD', timers, string.format('%.0f', math.ceil(at)), timer)
  wake_if_first(timers, timer, ARGV[4], ARGV[6])
  return 'wait'
end

-- A token bucket: what is in it now, and when there will be a whole token
local function bucket(tokens, at, most, per)
  local filled = math.min(most, (tokens or most) + math.max(0, now - (at or now)) * most / per)
  return filled, now + (1 - filled) * per / most
end

if concurrency and concurrency >= 0 and redis.call('ZCARD', held) >= concurrency then
  -- The end of another job of the key lets this one in
  redis.call('ZREM', timers, timer)
  return 'wait'
end
if pause and pause > now then return wait_until(pause) end
local rate, rate_tokens, rate_at = policy[2] or 0, nil, nil
local throttle, throttle_tokens, throttle_at = policy[4] or 0, nil, nil
if rate > 0 then
  rate_tokens, rate_at = bucket(policy[7], policy[8], rate, policy[3])
  if rate_tokens < 1 then return wait_until(rate_at) end
end
if throttle > 0 then
  throttle_tokens, throttle_at = bucket(policy[9], policy[10], 1, policy[5] / throttle)
  if throttle_tokens < 1 then return wait_until(throttle_at) end
end
-- What was let in and has not been started yet counts too: without workers a backlog must not build up that starts all
-- at once when they come
if rate > 0 or throttle > 0 then
  local groups = redis.pcall('XINFO', 'GROUPS', KEYS[9])
  local delivered = '0'
  if not groups.err then
    for _, group in ipairs(groups) do
      local fields = {}
      for i = 1, #group, 2 do fields[group[i]] = group[i + 1] end
      if fields.name == 'workers' then delivered = string.match(fields['last-delivered-id'], '^(%d+)') end
    end
  end
  local most = throttle > 0 and 1 or rate
  local per = throttle > 0 and policy[5] / throttle or policy[3] / rate
  local from, to = held_score(ARGV[3], delivered), held_score(ARGV[3], 0) + 2 ^ 42
  local waiting = redis.call('ZCOUNT', held, string.format('(%.0f', from), string.format('(%.0f', to))
  if waiting >= most then
    -- While nobody takes any, looking often would find nothing new
    local stands_still = policy[11] == tonumber(delivered)
    redis.call('HSET', limit, 'seen', delivered)
    return wait_until(now + (stands_still and 1000 or math.min(1000, math.max(50, per))))
  end
end

local fields = entry_fields(first, redis.call('HGETALL', KEYS[8]))
redis.call('ZREM', lane, first)
redis.call('HINCRBY', KEYS[6], 'laned', -1)
-- A job without a record was taken away by hand
if not fields then return 'admitted' end
if rate > 0 then redis.call('HSET', limit, 'r', string.format('%.6f', rate_tokens - 1), 'ra', now) end
if throttle > 0 then redis.call('HSET', limit, 't', string.format('%.6f', throttle_tokens - 1), 'ta', now) end
local entry = put(KEYS[9], KEYS[7], ARGV[3], ARGV[4], ARGV[5], fields)
note_entry(KEYS[8], ARGV[3], entry)
redis.call('ZADD', held, string.format('%.0f', held_score(ARGV[3], string.match(entry, '^(%d+)'))), first)
redis.call('ZADD', timers, now + 1000, timer)
return 'admitted'
