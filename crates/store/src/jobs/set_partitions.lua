#!lua flags=allow-oom
-- Raises the number of partitions in the controls of one partition of a queue, of the queue itself last of all. How many of
-- them have keys, unique jobs and chosen ids is settled there with the first number, for ever: all of them if the queue never
-- had a job, else one.
-- KEYS: 1 control, 2 key partitions, 3 priorities, 4 stats, 5 due, 6 pending, 7 timers, 8 dead letters, 9 discarded,
--       10 cancelled, 11.. streams
-- ARGV: 1 number of partitions, 2 "1" for the queue itself, 3 notification channel, 4 notification
-- Returns {number of partitions, key partitions}, or {"limit"} when a limit of the queue is smaller than the number, or
-- {"streams"} when the caller's list of streams is outdated.
-- May run twice: the number is never lowered, and the key partitions are settled once.
local control, key_partitions, priorities, stats, due = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local pending, timers, dead_letters, discarded, cancelled = KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10]
local first_stream = 11
local wanted, is_queue, notifications, notification = tonumber(ARGV[1]), ARGV[2] == '1', ARGV[3], ARGV[4]

local function never_had_a_job()
  if redis.call('EXISTS', stats, due, pending, timers, dead_letters, discarded, cancelled) > 0 then return false end
  for number = first_stream, #KEYS do
    local stream = KEYS[number]
    if redis.call('EXISTS', stream) == 1 and last_id(stream) ~= '0-0' then return false end
  end
  return true
end

local known = redis.call('HMGET', control, 'n', 'k', 'c', 'rl', 'rb')
local count, key_count = tonumber(known[1] or '1'), tonumber(known[2] or '')
local concurrency, rate = tonumber(known[3] or '0'), tonumber(known[5] or known[4] or '0')
if wanted > count then
  if concurrency > 0 and concurrency < wanted or rate > 0 and rate < wanted then return { 'limit' } end
  if is_queue and not key_count then
    if redis.call('SCARD', priorities) ~= #KEYS - first_stream + 1 then return { 'streams' } end
    key_count = never_had_a_job() and wanted or 1
    redis.call('HSET', control, 'k', key_count)
    if key_count > 1 then redis.call('SET', key_partitions, key_count) end
  end
  redis.call('HSET', control, 'n', wanted)
  redis.pcall('PUBLISH', notifications, notification)
  count = wanted
end
return { count, key_count or 1 }
