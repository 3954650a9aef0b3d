#!lua
-- Creates a job that has a record from the start: scheduled, or with an id that the client chose.
-- KEYS: 1 record, 2 result, 3 due, 4 stream, 5 priorities, then every other stream of the queue
-- ARGV: 1 id, 2 priority, 3 due ms or "" for now, 4 wake channel, 5 wake message (due), 6 wake message (stream),
--       7 most waiting jobs or 0 for no limit, 8.. fields and values of the job
-- Returns {"created", entry or ""}, {"duplicate"}, or {"full"} when a job that starts now finds no room.
-- May run twice: the second run finds the record.
if redis.call('EXISTS', KEYS[1], KEYS[2]) > 0 then return { 'duplicate' } end
if ARGV[3] ~= '' then
  redis.call('HSET', KEYS[1], 's', 'scheduled', 'p', ARGV[2], 'd', ARGV[3], unpack(ARGV, 8))
  redis.call('ZADD', KEYS[3], ARGV[3], ARGV[1])
  if redis.call('ZRANGE', KEYS[3], 0, 0)[1] == ARGV[1] then redis.call('PUBLISH', ARGV[4], ARGV[5]) end
  return { 'created', '' }
end
if tonumber(ARGV[7]) > 0 and waiting_in(4, { [5] = true }) >= tonumber(ARGV[7]) then return { 'full' } end
if redis.call('EXISTS', KEYS[4]) == 0 then
  redis.call('XGROUP', 'CREATE', KEYS[4], 'workers', '0', 'MKSTREAM')
end
if redis.call('SADD', KEYS[5], ARGV[2]) == 1 then redis.call('PUBLISH', ARGV[4], ARGV[6]) end
local entry = redis.call('XADD', KEYS[4], '*', 'i', ARGV[1], unpack(ARGV, 8))
redis.call('HSET', KEYS[1], 's', 'queued', 'p', ARGV[2], 'x', entry)
return { 'created', entry }
