#!lua flags=allow-oom
-- Deletes everything of a queue that holds no jobs.
-- KEYS: 1 priorities, 2 due, 3 pending, 4 timers, 5 dead letters, 6 active, 7 leases, 8 stats, 9 control, 10 lanes,
--       11.. streams
-- Returns 1, or 0 when it holds jobs, dead letters among them, or the list of streams is old.
-- May run twice: there is nothing left the second time.
if redis.call('SCARD', KEYS[1]) ~= #KEYS - 10 then return 0 end
for i = 2, 5 do
  if redis.call('ZCARD', KEYS[i]) > 0 then return 0 end
end
if tonumber(redis.call('HGET', KEYS[8], 'laned') or '0') > 0 then return 0 end
for i = 11, #KEYS do
  if redis.call('XLEN', KEYS[i]) > 0 then return 0 end
end
redis.call('DEL', unpack(KEYS))
return 1
