#!lua flags=allow-oom
-- Gives an attempt that a queue-worker runs a token, with which another program may end the attempt too. With a lease it
-- hands the attempt over to that program: then the lease is the fence, as for a job that was fetched over HTTP.
-- KEYS: 1 stream, 2 active, 3 leases
-- ARGV: 1 entry, 2 attempt name, 3 consumer that runs the attempt, 4 token, 5 start in ms, 6 deadline in ms or 0,
--       7 worker id, 8 lease in ms to hand the attempt over, or 0, 9 consumer of all pulled jobs,
--       10 notification channel, 11 notification (due), 12 when a lease starts by the caller's knowledge of the clock
-- Returns 1, or 0 when the attempt is not the current one.
-- May run twice: the second run finds its token in the attempt that it handed over.
local stream, active, leases = KEYS[1], KEYS[2], KEYS[3]
local entry, attempt_name, consumer, token = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local started, deadline, worker_id, lease_ms, pull_consumer = ARGV[5], ARGV[6], ARGV[7], tonumber(ARGV[8]), ARGV[9]
local notifications, due_notification, expected_start = ARGV[10], ARGV[11], ARGV[12]

local attempt = attempt_of(active, attempt_name)
if attempt and attempt.token == token
  and is_current_attempt(stream, active, leases, entry, attempt_name, 'worker', pull_consumer, '0') then
  return 1
end
if not is_current_attempt(stream, active, leases, entry, attempt_name, 'worker', consumer, '0') then return 0 end
local expiry
if lease_ms > 0 then
  redis.call('XCLAIM', stream, 'workers', pull_consumer, 0, entry, 'JUSTID')
  expiry = lease_start(expected_start) + lease_ms
  if tonumber(deadline) > 0 then expiry = math.min(expiry, tonumber(deadline)) end
else
  lease_ms = attempt and attempt.lease_ms or 0
end
local leased = string.format('%s %s %d %s %s', token, started, lease_ms, deadline, worker_id)
redis.call('HSET', active, attempt_name, leased)
if expiry then set_due(leases, attempt_name, expiry, notifications, due_notification) end
return 1
