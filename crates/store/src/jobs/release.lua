#!lua flags=allow-oom
-- Ends an attempt without an outcome and makes the job available again: handed back, or its lease ran out.
-- KEYS: 1 stream, 2 active, 3 leases, 4 record, 5 priorities, 6 timers
-- ARGV: 1 entry, 2 member, 3 kind, 4 a, 5 b (see fence.lua), 6 id, 7 priority, 8 wake channel, 9 wake message,
--       10 ms at which the job expires or "", 11 wake message (due), 12.. fields and values of the job
-- Returns "done", "done_before" or "stale".
-- May run twice: the record says which attempt it is from.
if not held(KEYS[1], KEYS[2], KEYS[3], ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]) then
  if redis.call('HGET', KEYS[4], 'k') == ARGV[2] then return 'done_before' end
  return 'stale'
end
local entry = put(KEYS[1], KEYS[5], ARGV[7], ARGV[8], ARGV[9], { 'i', ARGV[6], unpack(ARGV, 12) })
take_out(KEYS[1], KEYS[2], KEYS[3], ARGV[1], ARGV[2])
note_entry(KEYS[4], ARGV[7], entry)
redis.call('HSET', KEYS[4], 'k', ARGV[2])
expire_at(KEYS[6], ARGV[6], ARGV[10], ARGV[8], ARGV[11])
return 'done'
