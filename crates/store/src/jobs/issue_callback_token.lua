#!lua flags=allow-oom
-- Gives an attempt that a queue-worker runs a token, with which another program may end it too, or hands it over to that
-- program altogether: then it is leased like one that was fetched over HTTP.
-- KEYS: 1 stream, 2 active, 3 leases
-- ARGV: 1 entry, 2 member, 3 consumer, 4 token, 5 started ms, 6 deadline ms or 0, 7 worker id, 8 lease ms to hand it over,
--       or 0, 9 consumer that holds what is leased
-- Returns 1, or 0 when the attempt is no longer the current one.
-- May run twice: an attempt that was handed over knows its token.
local attempt = attempt_of(KEYS[2], ARGV[2])
if attempt and attempt.token == ARGV[4] and held(KEYS[1], KEYS[2], KEYS[3], ARGV[1], ARGV[2], 'worker', ARGV[9], '0') then
  return 1
end
if not held(KEYS[1], KEYS[2], KEYS[3], ARGV[1], ARGV[2], 'worker', ARGV[3], '0') then return 0 end
local lease, due = tonumber(ARGV[8]), nil
if lease > 0 then
  redis.call('XCLAIM', KEYS[1], 'workers', ARGV[9], 0, ARGV[1], 'JUSTID')
  due = now_ms() + lease
  if tonumber(ARGV[6]) > 0 then due = math.min(due, tonumber(ARGV[6])) end
else
  lease = attempt and attempt.lease or 0
end
redis.call('HSET', KEYS[2], ARGV[2], string.format('%s %s %d %s %s', ARGV[4], ARGV[5], lease, ARGV[6], ARGV[7]))
if due then redis.call('ZADD', KEYS[3], string.format('%.0f', due), ARGV[2]) end
return 1
