#!lua flags=no-writes,allow-oom
-- Lists entries of a stream without their content.
-- KEYS: 1 stream
-- ARGV: 1 first entry, 2 how many
-- Returns the id of each and its field "i", or "".
-- May run twice: it reads.
local stream = KEYS[1]
local first_entry, max_entries = ARGV[1], ARGV[2]

local listed = {}
for _, item in ipairs(redis.call('XRANGE', stream, first_entry, '+', 'COUNT', max_entries)) do
  local marker = ''
  for i = 1, #item[2], 2 do
    if item[2][i] == 'i' then marker = item[2][i + 1] end
  end
  listed[#listed + 1] = entry
  listed[#listed + 1] = id_field
end
return listed
