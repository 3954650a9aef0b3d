#!lua flags=no-writes
-- Reads who is present on a channel.
-- KEYS: 1 members, 2 gateways of members
-- ARGV: 1 "1" if members of gateways whose lease has ended are left out
-- Returns the version of the members, then each member and when it joined with its info.
-- May run twice: it only reads.
local members, gateways = KEYS[1], KEYS[2]
local leaves_out_ended = ARGV[1] == '1'

local is_ended, ended_at, fields = {}, {}, redis.call('HGETALL', members)
if leaves_out_ended then
  for _, gateway in ipairs(redis.call('ZRANGEBYSCORE', gateways, '-inf', now_ms())) do is_ended[gateway] = true end
end
local version, places = '0', {}
for i = 1, #fields, 2 do
  local gateway, held = string.match(fields[i], '^h:(%x+):(.+)$')
  if gateway and is_ended[gateway] then ended_at[held] = (ended_at[held] or 0) + 1 end
  local counted = string.match(fields[i], '^c:(.+)$')
  if counted then places[counted] = tonumber(fields[i + 1]) end
  if fields[i] == 'v' then version = fields[i + 1] end
end
local found = { version }
for i = 1, #fields, 2 do
  local member = string.match(fields[i], '^m:(.+)$')
  if member and (places[member] or 0) > (ended_at[member] or 0) then
    found[#found + 1] = member
    found[#found + 1] = fields[i + 1]
  end
end
return found
