#!lua flags=allow-oom
-- Admits the first jobs of key queues to their streams, as far as the limits of the keys allow it.
-- KEYS: 1 waiting keys, 2 timers, 3 stats, 4 priorities, 5.. for each key: its queue, admitted, its limit, its starts of a
--       strict rate, then the record and the stream of each job that the caller saw
-- ARGV: 1 notification channel, 2 notification (stream), 3 notification (due), 4 number of keys, 5.. for each key: the key,
--       how many jobs the caller saw first in its queue, then the id and the priority of each
-- Returns for each key "more" when all of these jobs were admitted, "wait" when the limit does not allow the next one now,
-- "changed" when another job is first, or "empty" when no job waits any more.
-- May run twice: the second run finds other jobs first.
local waiting_keys, timers, stats, priorities = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local notifications, stream_notification, due_notification = ARGV[1], ARGV[2], ARGV[3]
local key_count = tonumber(ARGV[4])
local first_of_key = 5
local first_key = 5

local now = now_ms()
-- Streams to which a job was added already
local opened = {}

-- The limit that a job brought. What has started counts for all jobs of the key.
local function limit_of(record_fields)
  local text = ''
  for i = 1, #record_fields, 2 do
    if record_fields[i] == 'l' then text = record_fields[i + 1] end
  end
  local concurrency, rate, period_ms, burst, strict, throttle, throttle_period_ms =
    string.match(text, '^%S+ (%-?%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+)$')
  return {
    concurrency = tonumber(concurrency or '-1'), is_strict = strict == '1',
    rate = tonumber(rate or '0'), period_ms = tonumber(period_ms or '0'), burst = tonumber(burst or '0'),
    throttle = tonumber(throttle or '0'), throttle_period_ms = tonumber(throttle_period_ms or '0'),
  }
end

-- What is known of the starts of a key.
local function starts_known(limit)
  local known = redis.call('HMGET', limit, 'until', 'r', 'ra', 't', 'ta', 'seen', 'paused')
  for i = 1, 7 do known[i] = tonumber(known[i] or '') end
  local paused_until, paused_at = known[1], known[7]
  if paused_until and paused_at and paused_at > now then
    -- Redis's clock was set back: the pause lasts as long as it should
    paused_until = now + paused_until - paused_at
    redis.call('HSET', limit, 'until', string.format('%.0f', paused_until), 'paused', string.format('%.0f', now))
  end
  return {
    paused_until = paused_until, seen_delivered = known[6],
    rate_tokens = known[2], rate_filled_at = known[3], throttle_tokens = known[4], throttle_filled_at = known[5],
  }
end

-- The tokens of a bucket; when it has none, also the time at which it will.
local function tokens_in(limit, tokens_field, time_field, tokens, filled_at, burst, per_period, length_ms)
  local filled, wait_ms = fill_bucket(tokens, filled_at, burst, per_period, length_ms, now)
  if filled_at and filled_at > now then
    redis.call('HSET', limit, tokens_field, string.format('%.6f', filled), time_field, string.format('%.0f', now))
  end
  return filled, filled < 1 and now + wait_ms
end

-- When a strict rate allows the next start; nil when it allows it now.
local function strict_wait(admitted, starts, policy, priority, delivered_ms, delivered_sequence, interval_ms)
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
  local free, wait_ms = free_in_window(starts, policy.rate, policy.period_ms, now)
  if free >= 1 then return nil end
  local poll_ms = math.min(1000, math.max(20, interval_ms / 4))
  if has_unclaimed then wait_ms = wait_ms > 0 and math.min(wait_ms, poll_ms) or poll_ms end
  return now + wait_ms
end

-- When the rates of a job allow its start; nil when they allow it now: then its tokens are taken out of what is known.
local function rate_wait(admitted, limit, starts, stream, policy, known, priority)
  local rate, throttle = policy.rate, policy.throttle
  local rate_tokens, throttle_tokens, next_token_at
  if rate > 0 then
    rate_tokens, next_token_at =
      tokens_in(limit, 'r', 'ra', known.rate_tokens, known.rate_filled_at, policy.burst, rate, policy.period_ms)
    if next_token_at then return next_token_at end
  end
  if throttle > 0 then
    throttle_tokens, next_token_at = tokens_in(
      limit, 't', 'ta', known.throttle_tokens, known.throttle_filled_at, 1, throttle, policy.throttle_period_ms)
    if next_token_at then return next_token_at end
  end
  -- Admitted jobs that no worker has claimed yet count too: without workers no backlog may build up that would start all
  -- at once when workers come
  local delivered_ms, delivered_sequence = string.match(last_delivered(stream), '^(%d+)%-(%d+)$')
  local max_waiting = throttle > 0 and 1 or policy.burst
  local interval_ms = throttle > 0 and policy.throttle_period_ms / throttle or policy.period_ms / rate
  local from, to = admitted_score(priority, delivered_ms), admitted_score(priority, 0) + 2 ^ 42
  local waiting = redis.call('ZCOUNT', admitted, string.format('(%.0f', from), string.format('(%.0f', to))
  if waiting >= max_waiting then
    -- While no worker claims jobs, a frequent check would find nothing new
    local is_unchanged = known.seen_delivered == tonumber(delivered_ms)
    redis.call('HSET', limit, 'seen', delivered_ms)
    return now + (is_unchanged and 1000 or math.min(1000, math.max(50, interval_ms)))
  end
  if rate > 0 and policy.is_strict then
    local wait_until =
      strict_wait(admitted, starts, policy, priority, delivered_ms, delivered_sequence, interval_ms)
    if wait_until then return wait_until end
  end
  if rate > 0 then known.rate_tokens, known.rate_filled_at = rate_tokens - 1, now end
  if throttle > 0 then known.throttle_tokens, known.throttle_filled_at = throttle_tokens - 1, now end
  return nil
end

local function take_tokens(limit, policy, known)
  if policy.rate > 0 then
    redis.call('HSET', limit, 'r', string.format('%.6f', known.rate_tokens), 'ra', known.rate_filled_at)
  end
  if policy.throttle > 0 then
    redis.call('HSET', limit, 't', string.format('%.6f', known.throttle_tokens), 'ta', known.throttle_filled_at)
  end
end

-- Moves a job, which its limit allows, to its stream. Returns whether it was there.
local function admit_job(key_queue, admitted, limit, starts, record, stream, id, priority, policy, known, record_fields)
  redis.call('ZREM', key_queue, id)
  local fields = entry_fields(id, record_fields)
  -- Somebody deleted the record by hand: there is no job to admit
  if not fields then return false end
  take_tokens(limit, policy, known)
  local entry = add_entry(stream, priorities, priority, notifications, stream_notification, fields, opened)
  note_entry(record, priority, entry)
  redis.call('ZADD', admitted, string.format('%.0f', admitted_score(priority, string.match(entry, '^(%d+)'))), id)
  if policy.rate > 0 and policy.is_strict then
    redis.call('ZADD', starts, 'inf', string.format('%s:%s %s', priority, entry, id))
    redis.call('PEXPIRE', starts, math.max(policy.period_ms, 86400000))
  end
  return true
end

local function note_that_none_waits(limit, key)
  redis.call('SREM', waiting_keys, key)
  redis.call('ZREM', timers, 'key ' .. key)
  redis.call('PEXPIRE', limit, idle_limit_ttl(limit))
  return 'empty'
end

-- Admits jobs of one key. Returns what came of it, and how many left the queue of the key.
local function admit_of_key(key_queue, admitted, limit, starts, key, first_job, first_id, job_count)
  local timer = 'key ' .. key
  -- One more than the caller saw, to know whether any is left
  local first_ids = redis.call('ZRANGE', key_queue, 0, job_count)
  if #first_ids == 0 then return note_that_none_waits(limit, key), 0 end
  if job_count == 0 then
    -- The first is no job, or came after the caller looked: then who brought it admits it
    set_due(timers, timer, now + 1000, notifications, due_notification)
    return 'wait', 0
  end
  local running = redis.call('ZCARD', admitted)
  local known
  for i = 1, job_count do
    local id, priority = ARGV[first_id + 2 * i - 2], ARGV[first_id + 2 * i - 1]
    local record, stream = KEYS[first_job + 2 * i - 2], KEYS[first_job + 2 * i - 1]
    if not first_ids[i] then return note_that_none_waits(limit, key), i - 1 end
    if first_ids[i] ~= id then return 'changed', i - 1 end
    local record_fields = redis.call('HGETALL', record)
    local policy = limit_of(record_fields)
    if policy.concurrency >= 0 and running >= policy.concurrency then
      -- The end of another job of the key admits this one
      redis.call('ZREM', timers, timer)
      return 'wait', i - 1
    end
    known = known or starts_known(limit)
    local wait_until = known.paused_until and known.paused_until > now and known.paused_until
    if not wait_until and (policy.rate > 0 or policy.throttle > 0) then
      wait_until = rate_wait(admitted, limit, starts, stream, policy, known, priority)
    end
    if wait_until then
      set_due(timers, timer, math.ceil(wait_until), notifications, due_notification)
      return 'wait', i - 1
    end
    if admit_job(key_queue, admitted, limit, starts, record, stream, id, priority, policy, known, record_fields) then
      running = running + 1
    end
  end
  if not first_ids[job_count + 1] then return note_that_none_waits(limit, key), job_count end
  -- The caller goes on; the leader does if the caller dies
  set_due(timers, timer, now + 1000, notifications, due_notification)
  return 'more', job_count
end

local outcomes = {}
for i = 1, key_count do
  local key, job_count = ARGV[first_key], tonumber(ARGV[first_key + 1])
  local key_queue, admitted = KEYS[first_of_key], KEYS[first_of_key + 1]
  local limit, starts = KEYS[first_of_key + 2], KEYS[first_of_key + 3]
  local left
  outcomes[i], left = admit_of_key(key_queue, admitted, limit, starts, key, first_of_key + 4, first_key + 2, job_count)
  if left > 0 then redis.call('HINCRBY', stats, 'key_waiting', -left) end
  first_of_key = first_of_key + 4 + 2 * job_count
  first_key = first_key + 2 + 2 * job_count
end
return outcomes
