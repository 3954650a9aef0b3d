#!lua flags=no-writes,allow-oom
-- Finds a job and reads everything that is stored of it at one moment.
-- KEYS: 1 result, 2 record, 3 active, 4 stream
-- ARGV: 1 priority of the stream, 2 entry that the id or the caller names, or ""
-- Returns {"result", text}, {"record", fields}, {"follow", priority, entry} when the record names another entry,
-- {"entry", fields, pending, attempt, progress} or {"none"}.
-- May run twice: it only reads.
local result, record, active, stream = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local priority, entry = ARGV[1], ARGV[2]

local result_text = redis.call('GET', result)
if result_text then return { 'result', result_text } end
local record_fields = redis.call('HGETALL', record)
if #record_fields > 0 then
  local value_of = {}
  for i = 1, #record_fields, 2 do value_of[record_fields[i]] = record_fields[i + 1] end
  if value_of.s ~= 'queued' then return { 'record', record_fields } end
  if value_of.p ~= priority or value_of.x ~= entry then return { 'follow', value_of.p, value_of.x } end
end
if entry == '' then return { 'none' } end
local found = redis.call('XRANGE', stream, entry, entry)
if #found == 0 then return { 'none' } end
local pending = redis.pcall('XPENDING', stream, 'workers', entry, entry, 1)
if pending.err then pending = {} end
local attempt_name = priority .. ':' .. entry
local attempt = redis.call('HMGET', active, attempt_name, 'p:' .. attempt_name)
return { 'entry', found[1][2], pending, attempt[1] or '', attempt[2] or '' }
