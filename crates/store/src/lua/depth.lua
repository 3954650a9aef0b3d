-- Put in front of every script that keeps a queue's depth limit.

-- How many jobs wait for a worker: in the streams among KEYS, from the first given on, and in lanes.
local function waiting_in(first, stats)
  local waiting = tonumber(redis.call('HGET', stats, 'laned') or '0')
  for i = first, #KEYS do
    if redis.call('EXISTS', KEYS[i]) == 1 then
      local pending = redis.pcall('XPENDING', KEYS[i], 'workers')
      waiting = waiting + redis.call('XLEN', KEYS[i]) - (pending.err and 0 or pending[1])
    end
  end
  return waiting
end
