#!lua flags=allow-oom
-- Moves a job whose time has come into its stream.
-- KEYS: 1 due, 2 record, 3 stream, 4 priorities
-- ARGV: 1 id, 2 priority, 3 wake channel, 4 wake message
-- Returns "moved", "early" or "gone".
-- May run twice: the second run finds it gone from the due set.
local due = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not due then return 'gone' end
local t = redis.call('TIME')
if tonumber(due) > t[1] * 1000 + math.floor(t[2] / 1000) then return 'early' end
local record = redis.call('HGETALL', KEYS[2])
local fields = { 'i', ARGV[1] }
for i = 1, #record, 2 do
  local name = record[i]
  if name ~= 's' and name ~= 'p' and name ~= 'd' and name ~= 'k' then
    fields[#fields + 1] = name
    fields[#fields + 1] = record[i + 1]
  end
end
if #fields == 2 then
  redis.call('ZREM', KEYS[1], ARGV[1])
  return 'gone'
end
if redis.call('EXISTS', KEYS[3]) == 0 then
  redis.call('XGROUP', 'CREATE', KEYS[3], 'workers', '0', 'MKSTREAM')
end
if redis.call('SADD', KEYS[4], ARGV[2]) == 1 then redis.call('PUBLISH', ARGV[3], ARGV[4]) end
local entry = redis.call('XADD', KEYS[3], '*', unpack(fields))
redis.call('DEL', KEYS[2])
redis.call('HSET', KEYS[2], 's', 'queued', 'p', ARGV[2], 'x', entry)
redis.call('ZREM', KEYS[1], ARGV[1])
return 'moved'
