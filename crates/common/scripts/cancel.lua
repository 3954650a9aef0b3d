#!lua flags=allow-oom
-- Ends a job that is not over, wherever it is: cancelled, or discarded because it expired.
-- KEYS: 1 stream, 2 active, 3 leases, 4 record, 5 result, 6 due, 7 stats
-- ARGV: 1 "entry" or "record", 2 id, 3 state to record, 4 result, 5 TTL in ms, 6 wake channel, 7 wake message,
--       entry: 8 entry, 9 member, 10 consumer that had it when the caller looked, or ""
--       record: 8 state that it had when the caller looked
-- Returns "done" or "changed": the job is not where the caller saw it, look again.
-- May run twice: the second run finds it changed, and a look finds it ended.
if ARGV[1] == 'entry' then
  local found = redis.call('XRANGE', KEYS[1], ARGV[8], ARGV[8])
  if #found == 0 then return 'changed' end
  local pending = redis.pcall('XPENDING', KEYS[1], 'workers', ARGV[8], ARGV[8], 1)
  local consumer = ''
  if not pending.err and #pending == 1 then consumer = pending[1][2] end
  if consumer ~= ARGV[10] then return 'changed' end
  take_out(KEYS[1], KEYS[2], KEYS[3], ARGV[8], ARGV[9])
else
  if redis.call('HGET', KEYS[4], 's') ~= ARGV[8] then return 'changed' end
  redis.call('ZREM', KEYS[6], ARGV[2])
end
redis.call('DEL', KEYS[4])
redis.call('SET', KEYS[5], ARGV[4], 'PX', ARGV[5])
redis.call('HINCRBY', KEYS[7], ARGV[3], 1)
redis.call('PUBLISH', ARGV[6], ARGV[7])
return 'done'
