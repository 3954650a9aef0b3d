#!lua flags=allow-oom
-- Moves a job into the queue of its concurrency key: one that is due, or a pending job that a client activates.
-- KEYS: 1 due or pending, 2 record, 3 key queue, 4 waiting keys, 5 limit of the key, 6 timers, 7 stats
-- ARGV: 1 "due" to check that the job is due, else "due_at_once" or "pending", 2 id, 3 priority, 4 key, 5 the job's limit,
--       6 notification channel, 7 notification (due)
-- Returns 1 when it moved the job, else 0.
-- May run twice: the second run no longer finds the job in the set.
local waiting, record, key_queue, waiting_keys = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local limit, timers, stats = KEYS[5], KEYS[6], KEYS[7]
local kind, id, priority, key, policy = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local leader = { notifications = ARGV[6], notification = ARGV[7] }

local score = redis.call('ZSCORE', waiting, id)
if not score or (kind == 'due' and tonumber(score) > now_ms()) then return 0 end
redis.call('ZREM', waiting, id)
if redis.call('HEXISTS', record, 'e') == 0 then return 0 end
if redis.call('HGET', record, 's') == 'retryable' then redis.call('HINCRBY', stats, 'retryable', -1) end
redis.call('HDEL', record, 'd', 'k', 'y')
redis.call('HSET', record, 's', 'key_waiting')
enqueue_for_key(key_queue, waiting_keys, limit, timers, stats, id, priority, key, policy, leader)
return 1
