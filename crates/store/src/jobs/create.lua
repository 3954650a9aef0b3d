#!lua
-- Creates a job that has a record from the start. With a job to replace it cancels that one in the same step.
-- KEYS: 1 record, 2 result, 3 due, 4 pending, 5 timers, 6 stats, 7 uniqueness, 8 limit of the key, 9 key queue,
--       10 waiting keys, 11 priorities, of the job to replace, if any: 12 stream, 13 active, 14 leases, 15 record (without a
--       job to replace: of the holder of uniqueness that the caller saw ended), 16 result, 17 key queue, 18 admitted, 19 cancelled,
--       20 key partitions or a key that is never there, then the new job's stream, then every other stream of the queue if it has a
--       max depth
-- ARGV: 1 id, 2 priority, 3 where the job waits: "now" (in its stream), "scheduled", "pending" or "key_queue",
--       4 start in ms ("scheduled") or creation in ms ("pending"), 5 ms at which the job expires or "",
--       6 notification channel, 7 notification (due), 8 notification (stream), 9 max waiting jobs or 0 for no limit,
--       10 the id that the caller read from uniqueness, "" for none, "-" when the job need not be unique,
--       11 TTL of uniqueness in ms, 12 key of the limit or "", 13 the limit or "",
--       of the job to replace: 14 where the caller saw it, "entry", "record" or "" for none, 15 entry, 16 attempt name,
--       17 state of the record, 18 id, 19 result as text, 20 TTL of the result in ms, 21 "1" when it has a follow-up,
--       22 channel of finished jobs, 23 "1" when the client chose the id, 24 most ids in cancelled, 25 its TTL
--       in ms, 26.. fields and values of the job
-- Returns {"created", entry or "", "new" when the queue had no streams before, else ""}, {"duplicate"}, {"moved"} when the
-- queue has several key partitions, of which the caller knows nothing, {"changed"} when
-- uniqueness holds another id than the caller read, its holder was redriven, or the job to replace is not where it was seen,
-- or {"full"} when max depth leaves no room for a job that starts now.
-- May run twice: the second run finds the record.
local record, result, due, pending, timers, stats = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local uniqueness, limit, key_queue, waiting_keys, priorities = KEYS[7], KEYS[8], KEYS[9], KEYS[10], KEYS[11]
local old_stream, active, leases, old_record = KEYS[12], KEYS[13], KEYS[14], KEYS[15]
local old_result, old_key_queue, old_admitted, cancelled = KEYS[16], KEYS[17], KEYS[18], KEYS[19]
local key_partitions, stream = KEYS[20], KEYS[21]
local first_stream = 21
local id, priority, destination, score, expires_at = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local notifications, due_notification, stream_notification = ARGV[6], ARGV[7], ARGV[8]
local leader = { notifications = ARGV[6], notification = ARGV[7] }
local max_waiting, known_holder, uniqueness_ttl_ms = tonumber(ARGV[9]), ARGV[10], ARGV[11]
local limit_key, policy = ARGV[12], ARGV[13]
local seen = { kind = ARGV[14], entry = ARGV[15], attempt_name = ARGV[16], consumer = '', state = ARGV[17] }
local old_id, old_text, old_ttl_ms, old_has_follow_up = ARGV[18], ARGV[19], ARGV[20], ARGV[21]
local finished, is_chosen_id = ARGV[22], ARGV[23] == '1'
local max_cancelled, cancelled_ttl_ms = tonumber(ARGV[24]), ARGV[25]
local first_field = 26

local is_unique = known_holder ~= '-'
local replaces = seen.kind ~= ''
local starts_now = destination == 'now' or destination == 'key_queue'
if redis.call('EXISTS', record, result, key_partitions) > 0 then
  return { redis.call('EXISTS', record, result) > 0 and 'duplicate' or 'moved' }
end
if is_unique and (redis.call('GET', uniqueness) or '') ~= known_holder then return { 'changed' } end
-- A unique job that lives has a record: who had ended and has one was redriven, and holds uniqueness as before
if is_unique and not replaces and redis.call('EXISTS', old_record) == 1 then return { 'changed' } end
if replaces and not is_where_seen(old_stream, old_record, seen) then return { 'changed' } end
local new = redis.call('EXISTS', priorities) == 0 and 'new' or ''
if starts_now and max_waiting > 0 then
  local waiting = count_waiting(first_stream, stats)
  -- The replaced job makes room
  if seen.kind == 'entry' or seen.state == 'key_waiting' then waiting = waiting - 1 end
  if waiting >= max_waiting then return { 'full' } end
end

if replaces then
  take_away(old_stream, active, leases, due, pending, old_key_queue, stats, old_id, seen)
  store_end(
    old_record, old_result, timers, old_admitted, stats, old_id, 'cancelled', old_text, old_ttl_ms, old_has_follow_up,
    leader
  )
  if old_ttl_ms ~= '0' then list_ended(cancelled, old_id, max_cancelled, cancelled_ttl_ms) end
end
if is_unique then redis.call('SET', uniqueness, id, 'PX', uniqueness_ttl_ms) end
expire_at(timers, id, expires_at, notifications, due_notification)
-- The caller notes the queue of a chosen id next; the leader does two seconds later if the caller died
if is_chosen_id then set_due(timers, 'chosen_id ' .. id, now_ms() + 2000, notifications, due_notification) end
if policy ~= '' then
  note_periods(limit, policy)
  -- While jobs wait for the limit it has no TTL
  if redis.call('EXISTS', key_queue) == 0 then redis.call('PEXPIRE', limit, idle_limit_ttl(limit)) end
end
if destination == 'now' then
  local fields = { 'i', id, unpack(ARGV, first_field) }
  local entry = add_entry(stream, priorities, priority, notifications, stream_notification, fields)
  note_entry(record, priority, entry)
  if replaces then publish_topic(finished, old_id) end
  return { 'created', entry, new }
end
if destination == 'key_queue' then
  redis.call('HSET', record, 's', 'key_waiting', 'p', priority, unpack(ARGV, first_field))
  enqueue_for_key(key_queue, waiting_keys, limit, timers, stats, id, priority, limit_key, policy, leader)
elseif destination == 'pending' then
  redis.call('HSET', record, 's', 'pending', 'p', priority, unpack(ARGV, first_field))
  redis.call('ZADD', pending, score, id)
else
  redis.call('HSET', record, 's', 'scheduled', 'p', priority, 'd', score, unpack(ARGV, first_field))
  set_due(due, id, tonumber(score), notifications, due_notification)
end
if replaces then publish_topic(finished, old_id) end
return { 'created', '', new }
