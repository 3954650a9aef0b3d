#!lua
-- Adds the jobs of a batch of elements, once: another process that recovers the batch may do the same at any time.
-- KEYS: 1 stream, 2 batches that became jobs
-- ARGV: 1 batch, 2 id of the oldest batch that there was when this one was read, 3 ms until which it may be added, 4 TTL of
--       batches that became jobs, in ms, 5.. of each job the number of its fields and values, and these
-- Returns {"added", the entries}, {"added_before"}, {"late"}, or nil when the stream does not exist.
-- May run twice: the second run finds the batch. A batch is forgotten when it is older than all that there are and nobody may
-- add it any more, because everybody who had read it is late by then.
local stream, bridged = KEYS[1], KEYS[2]
local batch, oldest, deadline, ttl_ms = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local first_job = 5

-- Longer than a batch may be added after it was read, also by clocks of several servers
local KEPT_MS, MAX_FORGOTTEN = 120000, 100

-- Whether an id of a stream is before another.
local function is_before(id, other)
  local time, number = string.match(id, '^(%d+)-(%d+)')
  local other_time, other_number = string.match(other, '^(%d+)-(%d+)')
  time, other_time = tonumber(time), tonumber(other_time)
  return time < other_time or (time == other_time and tonumber(number) < tonumber(other_number))
end

if redis.call('EXISTS', stream) == 0 then return false end
if redis.call('ZSCORE', bridged, batch) then return { 'added_before' } end
local now = now_ms()
if now > deadline then return { 'late' } end
for _, known in ipairs(redis.call('ZRANGEBYSCORE', bridged, '-inf', now - KEPT_MS, 'LIMIT', 0, MAX_FORGOTTEN)) do
  if is_before(known, oldest) then redis.call('ZREM', bridged, known) end
end
local answer = { 'added' }
local job = first_job
while job <= #ARGV do
  local first_field = job + 1
  job = first_field + tonumber(ARGV[job])
  answer[#answer + 1] = redis.call('XADD', stream, '*', unpack(ARGV, first_field, job - 1))
end
redis.call('ZADD', bridged, now, batch)
redis.call('PEXPIRE', bridged, ttl_ms)
return answer
