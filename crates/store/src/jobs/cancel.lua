#!lua flags=allow-oom
-- Ends a job that is not over, wherever it is: cancelled, or discarded because its time is over.
-- KEYS: 1 stream, 2 active, 3 leases, 4 record, 5 result, 6 due, 7 pending, 8 timers, 9 lane, 10 held, 11 stats
-- ARGV: 1 "entry" or "record", 2 id, 3 state to record, 4 result, 5 TTL in ms, 6 wake channel, 7 wake message,
--       8 channel for those who wait, 9 "1" when something follows the job's end,
--       entry: 10 entry, 11 member, 12 consumer that had it when the caller looked, or ""
--       record: 10 state of the record when the caller looked
-- Returns "done" or "changed": the job is not where the caller saw it, look again.
-- May run twice: the second run finds it changed, and a look finds it ended.
if ARGV[1] == 'entry' then
  local found = redis.call('XRANGE', KEYS[1], ARGV[10], ARGV[10])
  if #found == 0 then return 'changed' end
  local pending = redis.pcall('XPENDING', KEYS[1], 'workers', ARGV[10], ARGV[10], 1)
  local consumer = ''
  if not pending.err and #pending == 1 then consumer = pending[1][2] end
  if consumer ~= ARGV[12] then return 'changed' end
  take_out(KEYS[1], KEYS[2], KEYS[3], ARGV[10], ARGV[11])
else
  if redis.call('HGET', KEYS[4], 's') ~= ARGV[10] then return 'changed' end
  redis.call('ZREM', KEYS[6], ARGV[2])
  redis.call('ZREM', KEYS[7], ARGV[2])
  if ARGV[10] == 'held' and redis.call('ZREM', KEYS[9], ARGV[2]) == 1 then redis.call('HINCRBY', KEYS[11], 'laned', -1) end
end
redis.call('DEL', KEYS[4])
redis.call('SET', KEYS[5], ARGV[4], 'PX', ARGV[5])
redis.call('HINCRBY', KEYS[11], ARGV[3], 1)
job_is_over(KEYS[8], KEYS[10], ARGV[2], ARGV[9])
redis.call('PUBLISH', ARGV[6], ARGV[7])
redis.call('PUBLISH', ARGV[8], ARGV[2])
return 'done'
