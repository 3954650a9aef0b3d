#!lua
-- Makes a dead letter available again.
-- KEYS: 1 dead letters, 2 result, 3 record, 4 stream, 5 priorities, 6 lane, 7 lanes, 8 limit, 9 timers, 10 stats
-- ARGV: 1 id, 2 priority, 3 wake channel, 4 wake message, 5 key of its limit or "", 6 its limit or "",
--       7 ms at which the job expires or "", 8 wake message (due), 9.. fields and values of the job
-- Returns 1, or 0 when it is no dead letter any more.
-- May run twice: the second run finds it gone.
if not redis.call('ZSCORE', KEYS[1], ARGV[1]) or redis.call('EXISTS', KEYS[2]) == 0 then return 0 end
if ARGV[5] == '' then
  local entry = put(KEYS[4], KEYS[5], ARGV[2], ARGV[3], ARGV[4], { 'i', ARGV[1], unpack(ARGV, 9) })
  note_entry(KEYS[3], ARGV[2], entry)
else
  redis.call('HSET', KEYS[3], 's', 'held', 'p', ARGV[2], unpack(ARGV, 9))
  line_up(KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10], ARGV[1], ARGV[2], ARGV[5], ARGV[6], now_ms())
end
expire_at(KEYS[9], ARGV[1], ARGV[7], ARGV[3], ARGV[8])
redis.call('DEL', KEYS[2])
redis.call('ZREM', KEYS[1], ARGV[1])
return 1
