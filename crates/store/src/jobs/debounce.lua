#!lua
-- Makes a job that waits for its first attempt the new one that a client asked for, and puts it off.
-- KEYS: 1 stream, 2 active, 3 leases, 4 record, 5 due, 6 pending, 7 key queue, 8 admitted, 9 stats, 10 timers,
--       11 uniqueness
-- ARGV: 1 to 5 where the caller saw the job (see end_job.lua): kind, entry, attempt name, consumer, state of the record,
--       6 id, 7 priority, 8 when it is due, in ms, 9 notification channel, 10 notification (due), 11 ms at which the job
--       expires or "", 12 TTL of uniqueness in ms, 13 id that the request would have given a new job or "", 14 key of the
--       limit that the job had or "", 15.. fields and values of the job
-- Returns "done", "kept" when this request did it before, or "changed" when the job is no longer where the caller saw it, or
-- is not the one that has the uniqueness.
-- May run twice: the second run finds the id of its request, or does the same again.
local stream, active, leases, record, due, pending = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local key_queue, admitted, stats, timers, uniqueness = KEYS[7], KEYS[8], KEYS[9], KEYS[10], KEYS[11]
local seen = { kind = ARGV[1], entry = ARGV[2], attempt_name = ARGV[3], consumer = ARGV[4], state = ARGV[5] }
local id, priority, at, notifications, due_notification = ARGV[6], ARGV[7], ARGV[8], ARGV[9], ARGV[10]
local expires_at, uniqueness_ttl_ms, request, old_limit_key = ARGV[11], ARGV[12], ARGV[13], ARGV[14]
local first_field = 15
-- Ids of requests that a record keeps, of 36 characters each
local MAX_REQUEST_CHARACTERS = 8 * 36

if seen.consumer ~= '' or not is_where_seen(stream, record, seen) then return 'changed' end
if redis.call('GET', uniqueness) ~= id then return 'changed' end
local requests = redis.call('HGET', record, 'q') or ''
if request ~= '' and string.find(requests, request, 1, true) then return 'kept' end

-- A job that has a time keeps its place in the set: it only gets another time
if seen.state ~= 'scheduled' then
  take_away(stream, active, leases, due, pending, key_queue, stats, id, seen)
  redis.call('ZREM', admitted, id)
  if old_limit_key ~= '' then
    -- The caller lets the next job of the key in; the leader does if the caller dies
    set_due(timers, 'key ' .. old_limit_key, now_ms() + 1000, notifications, due_notification, 'LT')
  end
end
redis.call('DEL', record)
redis.call('HSET', record, 's', 'scheduled', 'p', priority, 'd', at, unpack(ARGV, first_field))
if request .. requests ~= '' then
  redis.call('HSET', record, 'q', string.sub(request .. requests, 1, MAX_REQUEST_CHARACTERS))
end
set_due(due, id, tonumber(at), notifications, due_notification)
redis.call('ZREM', timers, 'expire ' .. id)
expire_at(timers, id, expires_at, notifications, due_notification)
redis.call('PEXPIRE', uniqueness, uniqueness_ttl_ms)
return 'done'
