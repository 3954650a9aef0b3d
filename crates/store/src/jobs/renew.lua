#!lua flags=allow-oom
-- Renews the leases of jobs that a queue-worker still runs. A job that runs long enough to be renewed gets a field in the
-- active hash, so that every process can read when the attempt started and which worker runs it.
-- KEYS: 1 stream, 2 active, 3 leases
-- ARGV: 1 consumer, 2 priority, 3 worker id, 4 notification channel, 5 notification (due), 6 when a lease starts by the
--       caller's knowledge of the clock, 7.. for each job, at most 100: entry, start in ms, its own lease in ms or 0
-- Returns the entries that the consumer no longer has.
-- May run twice: it sets idle times and leases, it does not add to them.
local stream, active, leases = KEYS[1], KEYS[2], KEYS[3]
local consumer, priority, worker_id = ARGV[1], ARGV[2], ARGV[3]
local notifications, due_notification = ARGV[4], ARGV[5]
local expected_start = ARGV[6]
local first_job = 7

local lost, start = {}, lease_start(expected_start)
for i = first_job, #ARGV, 3 do
  local entry, started, lease_ms = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2])
  local attempt_name = priority .. ':' .. entry
  if not is_current_attempt(stream, active, leases, entry, attempt_name, 'worker', consumer, '0') then
    lost[#lost + 1] = entry
  else
    redis.call('XCLAIM', stream, 'workers', consumer, 0, entry, 'JUSTID')
    redis.call('HSETNX', active, attempt_name, string.format('- %d %d 0 %s', started, lease_ms, worker_id))
    if lease_ms > 0 then set_due(leases, attempt_name, start + lease_ms, notifications, due_notification) end
  end
end
return lost
