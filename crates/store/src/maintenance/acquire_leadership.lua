#!lua flags=allow-oom
-- Acquires or extends the leader lease.
-- KEYS: 1 leader, 2 the latest time that a leader saw
-- ARGV: 1 process, 2 lease in ms, 3 the time in ms that it should be now, from a leader that has healed what every step of
--       the clock left behind that it saw; "" from any other process, 4 how many ms that may be off
-- Returns {1 when the process is the leader now, else 0, the time in ms less the latest time that a leader saw, 0 if none
-- did, that latest time or 0}. The second is negative when Redis's clock was set back: the leader heals what that left behind
-- and then sets KEYS[2]. Only a time up to which everything is healed is noted there: so a process can tell which steps of
-- the clock that it saw no leader lived to heal.
-- May run twice: it sets the lease to the same length.
local leader, latest_seen = KEYS[1], KEYS[2]
local process, lease_ms, expected, tolerance_ms = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])

local stored = redis.call('MGET', leader, latest_seen)
local current, seen = stored[1], tonumber(stored[2] or '')
if current and current ~= process then
  -- After the clock was set back, a dead leader's lease would last until the clock gets there again
  if redis.call('PTTL', leader) > lease_ms then redis.call('PEXPIRE', leader, lease_ms) end
  return { 0, 0, seen or 0 }
end
redis.call('SET', leader, process, 'PX', lease_ms)
local now = now_ms()
if expected and math.abs(now - expected) <= tolerance_ms and (not seen or now > seen) then
  redis.call('SET', latest_seen, string.format('%.0f', now))
end
return { 1, seen and now - seen or 0, seen or 0 }
