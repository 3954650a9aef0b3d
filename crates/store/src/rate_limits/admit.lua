#!lua flags=allow-oom
-- Admits the first job of a key queue to its stream, if the limit of the key allows it.
-- KEYS: 1 key queue, 2 waiting keys, 3 admitted, 4 limit of the key, 5 timers, 6 stats, 7 priorities, 8 record of the job,
--       9 its stream
-- ARGV: 1 key, 2 id that the caller saw first in the key queue, 3 its priority, 4 notification channel,
--       5 notification (stream), 6 notification (due)
-- Returns "admitted", "wait" when the limit does not allow it now, "changed" when another job is first, or "empty".
-- May run twice: the second run finds another job first.
local key_queue, waiting_keys, admitted, limit, timers = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local stats, priorities, record, stream = KEYS[6], KEYS[7], KEYS[8], KEYS[9]
local key, seen_first, priority = ARGV[1], ARGV[2], ARGV[3]
local notifications, stream_notification, due_notification = ARGV[4], ARGV[5], ARGV[6]

local timer = 'key ' .. key
local first = redis.call('ZRANGE', key_queue, 0, 0)[1]
if not first then
  redis.call('SREM', waiting_keys, key)
  redis.call('ZREM', timers, timer)
  redis.call('PEXPIRE', limit, 2592000000)
  return 'empty'
end
if first ~= seen_first then return 'changed' end

local now = now_ms()
local policy = redis.call('HMGET', limit, 'c', 'rl', 'rp', 'tl', 'tp', 'until', 'r', 'ra', 't', 'ta', 'seen')
for i = 1, #policy do policy[i] = tonumber(policy[i] or '') end
local concurrency, rate, period_ms = policy[1], policy[2] or 0, policy[3]
local throttle, throttle_period_ms, paused_until = policy[4] or 0, policy[5], policy[6]
local last_seen_delivered = policy[11]

local function wait_until(at)
  redis.call('ZADD', timers, string.format('%.0f', math.ceil(at)), timer)
  notify_if_first(timers, timer, notifications, due_notification)
  return 'wait'
end

-- A token bucket: how many tokens it has now, and when it will have a whole one
local function bucket(tokens, at, max, per_ms)
  local filled = math.min(max, (tokens or max) + math.max(0, now - (at or now)) * max / per_ms)
  return filled, now + (1 - filled) * per_ms / max
end

if concurrency and concurrency >= 0 and redis.call('ZCARD', admitted) >= concurrency then
  -- The end of another job of the key admits this one
  redis.call('ZREM', timers, timer)
  return 'wait'
end
if paused_until and paused_until > now then return wait_until(paused_until) end
local rate_tokens, throttle_tokens, next_token_at
if rate > 0 then
  rate_tokens, next_token_at = bucket(policy[7], policy[8], rate, period_ms)
  if rate_tokens < 1 then return wait_until(next_token_at) end
end
if throttle > 0 then
  throttle_tokens, next_token_at = bucket(policy[9], policy[10], 1, throttle_period_ms / throttle)
  if throttle_tokens < 1 then return wait_until(next_token_at) end
end
-- Admitted jobs that no worker has claimed yet count too: without workers no backlog may build up that would start all
-- at once when workers come
if rate > 0 or throttle > 0 then
  local groups = redis.pcall('XINFO', 'GROUPS', stream)
  local delivered_ms = '0'
  if not groups.err then
    for _, group in ipairs(groups) do
      local fields = {}
      for i = 1, #group, 2 do fields[group[i]] = group[i + 1] end
      if fields.name == 'workers' then delivered_ms = string.match(fields['last-delivered-id'], '^(%d+)') end
    end
  end
  local max_waiting = throttle > 0 and 1 or rate
  local interval_ms = throttle > 0 and throttle_period_ms / throttle or period_ms / rate
  local from, to = admitted_score(priority, delivered_ms), admitted_score(priority, 0) + 2 ^ 42
  local waiting = redis.call('ZCOUNT', admitted, string.format('(%.0f', from), string.format('(%.0f', to))
  if waiting >= max_waiting then
    -- While no worker claims jobs, a frequent check would find nothing new
    local is_unchanged = last_seen_delivered == tonumber(delivered_ms)
    redis.call('HSET', limit, 'seen', delivered_ms)
    return wait_until(now + (is_unchanged and 1000 or math.min(1000, math.max(50, interval_ms))))
  end
end

local fields = entry_fields(first, redis.call('HGETALL', record))
redis.call('ZREM', key_queue, first)
redis.call('HINCRBY', stats, 'key_waiting', -1)
-- Somebody deleted the record by hand: there is no job to admit
if not fields then return 'admitted' end
if rate > 0 then redis.call('HSET', limit, 'r', string.format('%.6f', rate_tokens - 1), 'ra', now) end
if throttle > 0 then redis.call('HSET', limit, 't', string.format('%.6f', throttle_tokens - 1), 'ta', now) end
local entry = add_entry(stream, priorities, priority, notifications, stream_notification, fields)
note_entry(record, priority, entry)
local score = string.format('%.0f', admitted_score(priority, string.match(entry, '^(%d+)')))
redis.call('ZADD', admitted, score, first)
redis.call('ZADD', timers, now + 1000, timer)
return 'admitted'
