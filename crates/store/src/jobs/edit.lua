#!lua
-- Changes a job that waits: what its client asked for, its priority, or when it is due.
-- KEYS: 1 stream, 2 active, 3 leases, 4 record, 5 due, 6 pending, 7 key queue, 8 admitted, 9 stats, 10 new stream,
--       11 priorities, 12 waiting keys, 13 limit of the key, 14 timers
-- ARGV: 1 to 5 where the caller saw the job (see end_job.lua): kind, entry, attempt name, consumer, state of the record,
--       6 id, 7 where it goes: "available", or "scheduled", "retryable" or "pending", 8 priority, 9 when it is due or was
--       created, in ms, 10 notification channel, 11 notification (stream), 12 notification (due), 13 key of the limit or
--       "", 14 the limit or "", 15.. fields and values of the job
-- Returns "done", or "changed" when the job is no longer where the caller saw it.
-- May run twice: the second run finds the job elsewhere, or changes it to the same.
local stream, active, leases, record, due, pending = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local key_queue, admitted, stats, new_stream, priorities = KEYS[7], KEYS[8], KEYS[9], KEYS[10], KEYS[11]
local waiting_keys, limit, timers = KEYS[12], KEYS[13], KEYS[14]
local seen = { kind = ARGV[1], entry = ARGV[2], attempt_name = ARGV[3], consumer = ARGV[4], state = ARGV[5] }
local id, destination, priority, at = ARGV[6], ARGV[7], ARGV[8], ARGV[9]
local notifications, stream_notification, due_notification = ARGV[10], ARGV[11], ARGV[12]
local leader = { notifications = ARGV[10], notification = ARGV[12] }
local limit_key, policy = ARGV[13], ARGV[14]
local first_field = 15

if seen.consumer ~= '' or not is_where_seen(stream, record, seen) then return 'changed' end
-- The attempt that wrote the record, and its delay: a repeated call of its worker looks for them
local kept = redis.call('HMGET', record, 'k', 'y')
take_away(stream, active, leases, due, pending, key_queue, stats, id, seen)
redis.call('ZREM', admitted, id)
redis.call('DEL', record)
if destination == 'available' and limit_key == '' then
  local fields = { 'i', id, unpack(ARGV, first_field) }
  note_entry(record, priority, add_entry(new_stream, priorities, priority, notifications, stream_notification, fields))
  return 'done'
end
if destination == 'available' then
  redis.call('HSET', record, 's', 'key_waiting', 'p', priority, unpack(ARGV, first_field))
  enqueue_for_key(key_queue, waiting_keys, limit, timers, stats, id, priority, limit_key, policy, leader)
  return 'done'
end
redis.call('HSET', record, 's', destination, 'p', priority, unpack(ARGV, first_field))
if destination == 'pending' then
  redis.call('ZADD', pending, at, id)
  return 'done'
end
redis.call('HSET', record, 'd', at)
if destination == 'retryable' then
  redis.call('HINCRBY', stats, 'retryable', 1)
  if kept[1] then redis.call('HSET', record, 'k', kept[1]) end
  if kept[2] then redis.call('HSET', record, 'y', kept[2]) end
end
set_due(due, id, tonumber(at), notifications, due_notification)
return 'done'
