#!lua flags=allow-oom
-- Admits the first job of a key queue to its stream, if the limit of the key allows it.
-- KEYS: 1 key queue, 2 waiting keys, 3 admitted, 4 limit of the key, 5 timers, 6 stats, 7 priorities, 8 record of the job,
--       9 its stream, 10 starts of a strict rate, 11 record of the job behind it
-- ARGV: 1 key, 2 id that the caller saw first in the key queue, 3 its priority, 4 notification channel,
--       5 notification (stream), 6 notification (due), 7 id that the caller saw behind the first, or ""
-- Returns "admitted", "last" when it was admitted and no other can be now, "wait" when the limit does not allow it now,
-- "changed" when another job is first, or "empty".
-- May run twice: the second run finds another job first.
local key_queue, waiting_keys, admitted, limit, timers = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local stats, priorities, record, stream, starts = KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10]
local next_record = KEYS[11]
local key, seen_first, priority = ARGV[1], ARGV[2], ARGV[3]
local notifications, stream_notification, due_notification = ARGV[4], ARGV[5], ARGV[6]
local seen_next = ARGV[7]

local timer = 'key ' .. key
local first = redis.call('ZRANGE', key_queue, 0, 0)[1]
local function note_that_none_waits()
  redis.call('SREM', waiting_keys, key)
  redis.call('ZREM', timers, timer)
  redis.call('PEXPIRE', limit, idle_limit_ttl(limit))
end
if not first then
  note_that_none_waits()
  return 'empty'
end
if first ~= seen_first then return 'changed' end

local now = now_ms()
-- The limit is that of the job; what has started counts for all jobs of the key
local own_limit = redis.call('HGET', record, 'l') or ''
local concurrency, rate, period_ms, burst, strict, throttle, throttle_period_ms =
  string.match(own_limit, '^%S+ (%-?%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+)$')
concurrency, rate, period_ms = tonumber(concurrency or '-1'), tonumber(rate or '0'), tonumber(period_ms or '0')
burst, throttle, throttle_period_ms = tonumber(burst or '0'), tonumber(throttle or '0'), tonumber(throttle_period_ms or '0')
local is_strict = strict == '1'
local known = redis.call('HMGET', limit, 'until', 'r', 'ra', 't', 'ta', 'seen', 'paused')
for i = 1, 7 do known[i] = tonumber(known[i] or '') end
local paused_until, last_seen_delivered, paused_at = known[1], known[6], known[7]
if paused_until and paused_at and paused_at > now then
  -- Redis's clock was set back: the pause lasts as long as it should
  paused_until = now + paused_until - paused_at
  redis.call('HSET', limit, 'until', string.format('%.0f', paused_until), 'paused', string.format('%.0f', now))
end

local function wait_until(at)
  set_due(timers, timer, math.ceil(at), notifications, due_notification)
  return 'wait'
end

if concurrency >= 0 and redis.call('ZCARD', admitted) >= concurrency then
  -- The end of another job of the key admits this one
  redis.call('ZREM', timers, timer)
  return 'wait'
end
if paused_until and paused_until > now then return wait_until(paused_until) end
-- The tokens of a bucket; when it has none, also the time at which it will
local function tokens_in(tokens_field, time_field, tokens, filled_at, burst_size, per_period, length_ms)
  local filled, wait_ms = fill_bucket(tokens, filled_at, burst_size, per_period, length_ms, now)
  if filled_at and filled_at > now then
    redis.call('HSET', limit, tokens_field, string.format('%.6f', filled), time_field, string.format('%.0f', now))
  end
  return filled, filled < 1 and now + wait_ms
end

local rate_tokens, throttle_tokens, next_token_at
if rate > 0 then
  rate_tokens, next_token_at = tokens_in('r', 'ra', known[2], known[3], burst, rate, period_ms)
  if next_token_at then return wait_until(next_token_at) end
end
if throttle > 0 then
  throttle_tokens, next_token_at = tokens_in('t', 'ta', known[4], known[5], 1, throttle, throttle_period_ms)
  if next_token_at then return wait_until(next_token_at) end
end
-- Admitted jobs that no worker has claimed yet count too: without workers no backlog may build up that would start all
-- at once when workers come
if rate > 0 or throttle > 0 then
  local groups = redis.pcall('XINFO', 'GROUPS', stream)
  local delivered_ms, delivered_sequence = '0', '0'
  if not groups.err then
    for _, group in ipairs(groups) do
      local fields = {}
      for i = 1, #group, 2 do fields[group[i]] = group[i + 1] end
      if fields.name == 'workers' then
        delivered_ms, delivered_sequence = string.match(fields['last-delivered-id'], '^(%d+)%-(%d+)$')
      end
    end
  end
  local max_waiting = throttle > 0 and 1 or burst
  local interval_ms = throttle > 0 and throttle_period_ms / throttle or period_ms / rate
  local from, to = admitted_score(priority, delivered_ms), admitted_score(priority, 0) + 2 ^ 42
  local waiting = redis.call('ZCOUNT', admitted, string.format('(%.0f', from), string.format('(%.0f', to))
  if waiting >= max_waiting then
    -- While no worker claims jobs, a frequent check would find nothing new
    local is_unchanged = last_seen_delivered == tonumber(delivered_ms)
    redis.call('HSET', limit, 'seen', delivered_ms)
    return wait_until(now + (is_unchanged and 1000 or math.min(1000, math.max(50, interval_ms))))
  end
  if is_strict then
    -- An admitted job starts when a worker claims it, and nobody notes that here: until this script sees the claim, it is
    -- still to come, and then it counts from now
    local has_unclaimed = false
    for _, start in ipairs(redis.call('ZRANGEBYSCORE', starts, 'inf', 'inf')) do
      local its_priority, ms, sequence, id = string.match(start, '^(%-?%d+):(%d+)%-(%d+) (.+)$')
      local is_claimed = its_priority == priority and (tonumber(ms) < tonumber(delivered_ms)
        or ms == delivered_ms and tonumber(sequence) <= tonumber(delivered_sequence))
      if is_claimed or not redis.call('ZSCORE', admitted, id) then
        redis.call('ZADD', starts, now, start)
      else
        has_unclaimed = true
      end
    end
    local free, wait_ms = free_in_window(starts, rate, period_ms, now)
    if free < 1 then
      local poll_ms = math.min(1000, math.max(20, interval_ms / 4))
      if has_unclaimed then wait_ms = wait_ms > 0 and math.min(wait_ms, poll_ms) or poll_ms end
      return wait_until(now + wait_ms)
    end
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
if rate > 0 and is_strict then
  redis.call('ZADD', starts, 'inf', string.format('%s:%s %s', priority, entry, first))
  redis.call('PEXPIRE', starts, math.max(period_ms, 86400000))
end
local next_job = redis.call('ZRANGE', key_queue, 0, 0)[1]
if not next_job then
  note_that_none_waits()
  return 'last'
end
if next_job == seen_next then
  local next_limit = redis.call('HGET', next_record, 'l') or ''
  local next_concurrency = tonumber(string.match(next_limit, '^%S+ (%-?%d+) ') or '-1')
  if next_concurrency >= 0 and redis.call('ZCARD', admitted) >= next_concurrency then
    -- The end of another job of the key admits it
    redis.call('ZREM', timers, timer)
    return 'last'
  end
end
set_due(timers, timer, now + 1000, notifications, due_notification)
return 'admitted'
