-- Put in front of every script that keeps a queue's depth limit.

-- How many jobs wait in the streams among KEYS, from the first given on, leaving some out.
local function waiting_in(first, except)
  local waiting = 0
  for i = first, #KEYS do
    if not (except and except[i]) and redis.call('EXISTS', KEYS[i]) == 1 then
      local pending = redis.pcall('XPENDING', KEYS[i], 'workers')
      waiting = waiting + redis.call('XLEN', KEYS[i]) - (pending.err and 0 or pending[1])
    end
  end
  return waiting
end
