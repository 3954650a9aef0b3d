#!lua
-- Creates a job that has a record from the start.
-- KEYS: 1 record, 2 result, 3 due, 4 pending, 5 timers, 6 stats, 7 uniqueness, 8 limit of the key, 9 key queue,
--       10 waiting keys, 11 priorities, 12 the job's stream, then every other stream of the queue if it has a max depth
-- ARGV: 1 id, 2 priority, 3 where the job waits: "now" (in its stream), "scheduled", "pending" or "key_queue",
--       4 start in ms ("scheduled") or creation in ms ("pending"), 5 ms at which the job expires or "",
--       6 notification channel, 7 notification (due), 8 notification (stream), 9 max waiting jobs or 0 for no limit,
--       10 the id that the caller read from uniqueness, "" for none, "-" when the job need not be unique,
--       11 TTL of uniqueness in ms, 12 key of the limit or "", 13 the limit or "", 14.. fields and values of the job
-- Returns {"created", entry or "", "new" when the queue had no streams before, else ""}, {"duplicate"}, {"changed"} when
-- uniqueness holds another id than the caller read, or {"full"} when max depth leaves no room for a job that starts now.
-- May run twice: the second run finds the record.
local record, result, due, pending, timers, stats = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local uniqueness, limit, key_queue, waiting_keys = KEYS[7], KEYS[8], KEYS[9], KEYS[10]
local priorities, stream = KEYS[11], KEYS[12]
local first_stream = 12
local id, priority, destination, score, expires_at = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local notifications, due_notification, stream_notification = ARGV[6], ARGV[7], ARGV[8]
local max_waiting, known_holder, uniqueness_ttl_ms = tonumber(ARGV[9]), ARGV[10], ARGV[11]
local limit_key, policy = ARGV[12], ARGV[13]
local first_field = 14

local is_unique = known_holder ~= '-'
local starts_now = destination == 'now' or destination == 'key_queue'
if redis.call('EXISTS', record, result) > 0 then return { 'duplicate' } end
if is_unique and (redis.call('GET', uniqueness) or '') ~= known_holder then return { 'changed' } end
local new = redis.call('EXISTS', priorities) == 0 and 'new' or ''
if starts_now and max_waiting > 0 and count_waiting(first_stream, stats) >= max_waiting then return { 'full' } end

if is_unique then redis.call('SET', uniqueness, id, 'PX', uniqueness_ttl_ms) end
expire_at(timers, id, expires_at, notifications, due_notification)
if policy ~= '' then
  set_policy(limit, policy)
  -- While jobs wait for the limit it has no TTL
  if redis.call('EXISTS', key_queue) == 0 then redis.call('PEXPIRE', limit, 2592000000) end
end
if destination == 'now' then
  local fields = { 'i', id, unpack(ARGV, first_field) }
  local entry = add_entry(stream, priorities, priority, notifications, stream_notification, fields)
  note_entry(record, priority, entry)
  return { 'created', entry, new }
end
if destination == 'key_queue' then
  redis.call('HSET', record, 's', 'key_waiting', 'p', priority, unpack(ARGV, first_field))
  enqueue_for_key(key_queue, waiting_keys, limit, timers, stats, id, priority, limit_key, policy, now_ms())
elseif destination == 'pending' then
  redis.call('HSET', record, 's', 'pending', 'p', priority, unpack(ARGV, first_field))
  redis.call('ZADD', pending, score, id)
else
  redis.call('HSET', record, 's', 'scheduled', 'p', priority, 'd', score, unpack(ARGV, first_field))
  redis.call('ZADD', due, score, id)
  notify_if_first(due, id, notifications, due_notification)
end
return { 'created', '', new }
