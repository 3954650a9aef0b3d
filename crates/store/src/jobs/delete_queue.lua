#!lua flags=allow-oom
-- Deletes every key of a queue that holds no jobs and has no partitions.
-- KEYS: 1 priorities, 2 due, 3 pending, 4 timers, 5 dead letters, 6 active, 7 leases, 8 stats, 9 control,
--       10 waiting keys, 11 discarded, 12 cancelled, 13 index of completed jobs, 14.. streams
-- ARGV: none
-- Returns 1, or 0 when the queue holds jobs or dead letters, or has partitions, or the caller's list of streams is outdated.
-- May run twice: the second run finds nothing to delete.
local priorities, due, pending, timers, dead_letters = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local stats, control = KEYS[8], KEYS[9]
local first_stream = 14

if redis.call('HEXISTS', control, 'n') == 1 then return 0 end
if redis.call('SCARD', priorities) ~= #KEYS - first_stream + 1 then return 0 end
for _, set in ipairs({ due, pending, timers, dead_letters }) do
  if redis.call('ZCARD', set) > 0 then return 0 end
end
if tonumber(redis.call('HGET', stats, 'key_waiting') or '0') > 0 then return 0 end
for i = first_stream, #KEYS do
  if redis.call('XLEN', KEYS[i]) > 0 then return 0 end
end
redis.call('DEL', unpack(KEYS))
return 1
