#!lua flags=allow-oom
-- Moves retries that are due later than their delay after Redis's clock was set back. Scheduled jobs keep their time.
-- KEYS: 1 due, 2.. records
-- ARGV: the id of each record
-- Returns how many it moved.
-- May run twice: it moves nothing to an earlier time than now and its delay.
local due = KEYS[1]
local first_record = 2
local first_id = 1

local now, moved = now_ms(), 0
for i = first_id, #ARGV do
  local record = KEYS[first_record + i - first_id]
  local known = redis.call('HMGET', record, 's', 'y')
  local delay_ms = tonumber(known[2] or '')
  if known[1] == 'retryable' and delay_ms then
    local latest = string.format('%.0f', now + delay_ms)
    if redis.call('ZADD', due, 'XX', 'LT', 'CH', latest, ARGV[i]) == 1 then
      redis.call('HSET', record, 'd', latest)
      moved = moved + 1
    end
  end
end
return moved
