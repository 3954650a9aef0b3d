#!lua flags=no-writes,allow-oom
-- Lists entries of a stream without their content.
-- KEYS: 1 stream
-- ARGV: 1 first entry, 2 max entries
-- Returns for each entry its id and its field "i", or "".
-- May run twice: it only reads.
local stream = KEYS[1]
local start, max_entries = ARGV[1], ARGV[2]

local listed = {}
for _, item in ipairs(redis.call('XRANGE', stream, start, '+', 'COUNT', max_entries)) do
  local entry, fields, id_field = item[1], item[2], ''
  for i = 1, #fields, 2 do
    if fields[i] == 'i' then id_field = fields[i + 1] end
  end
  listed[#listed + 1] = entry
  listed[#listed + 1] = id_field
end
return listed
