#!lua flags=no-writes,allow-oom
-- Finds a job and shows everything there is of it, at one moment.
-- KEYS: 1 result, 2 record, 3 active, 4 stream
-- ARGV: 1 priority of the stream, 2 entry that the id or the caller names, or ""
-- Returns {"result", text}, {"record", fields}, {"follow", priority, entry} when the record names another entry,
-- {"entry", fields, pending, attempt, progress} or {"none"}.
local result = redis.call('GET', KEYS[1])
if result then return { 'result', result } end
local record = redis.call('HGETALL', KEYS[2])
if #record > 0 then
  local fields = {}
  for i = 1, #record, 2 do fields[record[i]] = record[i + 1] end
  if fields.s ~= 'queued' then return { 'record', record } end
  if fields.p ~= ARGV[1] or fields.x ~= ARGV[2] then return { 'follow', fields.p, fields.x } end
end
if ARGV[2] == '' then return { 'none' } end
local entry = redis.call('XRANGE', KEYS[4], ARGV[2], ARGV[2])
if #entry == 0 then return { 'none' } end
local pending = redis.pcall('XPENDING', KEYS[4], 'workers', ARGV[2], ARGV[2], 1)
if pending.err then pending = {} end
local member = ARGV[1] .. ':' .. ARGV[2]
local about = redis.call('HMGET', KEYS[3], member, 'p:' .. member)
return { 'entry', entry[1][2], pending, about[1] or '', about[2] or '' }
