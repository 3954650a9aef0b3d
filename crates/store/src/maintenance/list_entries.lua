#!lua flags=no-writes,allow-oom
-- Lists entries of a stream without what is in them.
-- KEYS: 1 stream
-- ARGV: 1 first entry, 2 how many
-- Returns the id of each and its field "i", or "".
-- May run twice: it reads.
local listed = {}
for _, item in ipairs(redis.call('XRANGE', KEYS[1], ARGV[1], '+', 'COUNT', ARGV[2])) do
  local marker = ''
  for i = 1, #item[2], 2 do
    if item[2][i] == 'i' then marker = item[2][i + 1] end
  end
  listed[#listed + 1] = item[1]
  listed[#listed + 1] = marker
end
return listed
