-- For scripts that check the max depth of a queue.

-- How many jobs wait for a worker: those in the streams, which are the last KEYS from `first_stream` on, and those that
-- wait for the limit of their key.
local function count_waiting(first_stream, stats)
  local waiting = tonumber(redis.call('HGET', stats, 'key_waiting') or '0')
  for i = first_stream, #KEYS do
    if redis.call('EXISTS', KEYS[i]) == 1 then
      local pending = redis.pcall('XPENDING', KEYS[i], 'workers')
      waiting = waiting + redis.call('XLEN', KEYS[i]) - (pending.err and 0 or pending[1])
    end
  end
  return waiting
end
