#!lua flags=allow-oom
-- Acquires or extends the leader lease.
-- KEYS: 1 leader, 2 the latest time that a leader saw
-- ARGV: 1 process, 2 lease in ms
-- Returns {1 when the process is the leader now, else 0, the time in ms less the latest time that a leader saw, 0 if none
-- did}. It is negative when Redis's clock was set back: the leader heals what that left behind and then sets KEYS[2].
-- May run twice: it sets the lease to the same length.
local leader, latest_seen = KEYS[1], KEYS[2]
local process, lease_ms = ARGV[1], tonumber(ARGV[2])

local current = redis.call('GET', leader)
if current and current ~= process then
  -- After the clock was set back, a dead leader's lease would last until the clock gets there again
  if redis.call('PTTL', leader) > lease_ms then redis.call('PEXPIRE', leader, lease_ms) end
  return { 0, 0 }
end
redis.call('SET', leader, process, 'PX', lease_ms)
local now, seen = now_ms(), tonumber(redis.call('GET', latest_seen) or '')
if not seen or now > seen then redis.call('SET', latest_seen, string.format('%.0f', now)) end
return { 1, seen and now - seen or 0 }
