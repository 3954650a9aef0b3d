#!lua flags=allow-oom
-- Renews the jobs that a queue-worker still runs. Jobs old enough to need it get an entry in the active hash, so
-- that everybody sees when they began and who has them.
-- KEYS: 1 stream, 2 active, 3 leases
-- ARGV: 1 consumer, 2 priority, 3 worker id, then of each job entry, started ms and own lease ms or 0, at most 100 jobs
-- Returns the entries that the consumer no longer has.
-- May run twice: idle times and leases are set, not added to.
local lost, now = {}, now_ms()
for i = 4, #ARGV, 3 do
  local entry, lease = ARGV[i], tonumber(ARGV[i + 2])
  local member = ARGV[2] .. ':' .. entry
  if not held(KEYS[1], KEYS[2], KEYS[3], entry, member, 'worker', ARGV[1], '0') then
    lost[#lost + 1] = entry
  else
    redis.call('XCLAIM', KEYS[1], 'workers', ARGV[1], 0, entry, 'JUSTID')
    redis.call('HSETNX', KEYS[2], member, string.format('- %d %d 0 %s', ARGV[i + 1], lease, ARGV[3]))
    if lease > 0 then redis.call('ZADD', KEYS[3], now + lease, member) end
  end
end
return lost
