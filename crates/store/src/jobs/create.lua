#!lua
-- Creates a job that has a record from the start.
-- KEYS: 1 record, 2 result, 3 due, 4 pending, 5 timers, 6 stats, 7 holder of the uniqueness, 8 limit, 9 lane, 10 lanes,
--       11 priorities, 12 stream, then every other stream of the queue if there is a depth limit
-- ARGV: 1 id, 2 priority, 3 "now", "scheduled", "pending" or "lane", 4 start ms (scheduled) or creation ms (pending),
--       5 ms at which the job expires or "", 6 wake channel, 7 wake message (due), 8 wake message (stream),
--       9 most waiting jobs or 0 for no limit, 10 whom the caller saw hold the uniqueness, "" for nobody, or "-" for a
--       job that need not be unique, 11 TTL of the uniqueness in ms, 12 key of the limit or "", 13 the limit or "",
--       14.. fields and values of the job
-- Returns {"created", entry or "", "new" when the queue had no streams before, else ""}, {"duplicate"}, {"held"} when another holds the uniqueness, or {"full"} when a job
-- that starts now finds no room.
-- May run twice: the second run finds the record.
local record, timers, priority, how = KEYS[1], KEYS[5], ARGV[2], ARGV[3]
if redis.call('EXISTS', record, KEYS[2]) > 0 then return { 'duplicate' } end
if ARGV[10] ~= '-' and (redis.call('GET', KEYS[7]) or '') ~= ARGV[10] then return { 'held' } end
local new = redis.call('EXISTS', KEYS[11]) == 0 and 'new' or ''
local starts_now = how == 'now' or how == 'lane'
if starts_now and tonumber(ARGV[9]) > 0 and waiting_in(12, KEYS[6]) >= tonumber(ARGV[9]) then return { 'full' } end

if ARGV[10] ~= '-' then redis.call('SET', KEYS[7], ARGV[1], 'PX', ARGV[11]) end
expire_at(timers, ARGV[1], ARGV[5], ARGV[6], ARGV[7])
if ARGV[13] ~= '' then
  set_policy(KEYS[8], ARGV[13])
  -- Jobs that wait for it keep it for as long as they do
  if redis.call('EXISTS', KEYS[9]) == 0 then redis.call('PEXPIRE', KEYS[8], 2592000000) end
end
if how == 'now' then
  local entry = put(KEYS[12], KEYS[11], priority, ARGV[6], ARGV[8], { 'i', ARGV[1], unpack(ARGV, 14) })
  note_entry(record, priority, entry)
  return { 'created', entry, new }
end
if how == 'lane' then
  redis.call('HSET', record, 's', 'held', 'p', priority, unpack(ARGV, 14))
  line_up(KEYS[9], KEYS[10], KEYS[8], timers, KEYS[6], ARGV[1], priority, ARGV[12], ARGV[13], now_ms())
elseif how == 'pending' then
  redis.call('HSET', record, 's', 'pending', 'p', priority, unpack(ARGV, 14))
  redis.call('ZADD', KEYS[4], ARGV[4], ARGV[1])
else
  redis.call('HSET', record, 's', 'scheduled', 'p', priority, 'd', ARGV[4], unpack(ARGV, 14))
  redis.call('ZADD', KEYS[3], ARGV[4], ARGV[1])
  wake_if_first(KEYS[3], ARGV[1], ARGV[6], ARGV[7])
end
return { 'created', '', new }
