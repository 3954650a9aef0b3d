-- For scripts that end a job which has not finished, from outside its attempt.

-- Where the caller saw a job is a table: `kind` "entry" with `entry`, `attempt_name` and `consumer` ("" when nobody had
-- it), or "record" with `state`. Returns whether the job is still there.
local function is_where_seen(stream, record, seen)
  if seen.kind == 'record' then return redis.call('HGET', record, 's') == seen.state end
  if #redis.call('XRANGE', stream, seen.entry, seen.entry) == 0 then return false end
  local claimed = redis.pcall('XPENDING', stream, 'workers', seen.entry, seen.entry, 1)
  local consumer = ''
  if not claimed.err and #claimed == 1 then consumer = claimed[1][2] end
  return consumer == seen.consumer
end

-- Takes a job away from where it was seen.
local function take_away(stream, active, leases, due, pending, key_queue, stats, id, seen)
  if seen.kind == 'entry' then
    remove_entry(stream, active, leases, seen.entry, seen.attempt_name)
    return
  end
  redis.call('ZREM', due, id)
  if seen.state == 'retryable' then redis.call('HINCRBY', stats, 'retryable', -1) end
  redis.call('ZREM', pending, id)
  if seen.state == 'key_waiting' and redis.call('ZREM', key_queue, id) == 1 then
    redis.call('HINCRBY', stats, 'key_waiting', -1)
  end
end

-- Stores the end of such a job: `text` is its result with a TTL; and prepares what follows. `leader` is a table of
-- `notifications` and the `notification` for a new due time.
local function store_end(record, result, timers, admitted, stats, id, state, text, ttl_ms, has_follow_up, leader)
  redis.call('DEL', record)
  -- 0: Redis is too full to store it
  if ttl_ms ~= '0' then redis.call('SET', result, text, 'PX', ttl_ms) end
  redis.call('HINCRBY', stats, state, 1)
  after_end(timers, admitted, id, has_follow_up, leader.notifications, leader.notification)
end
