#!lua
-- Lets one worker at a time deliver a channel in order: gives it the channel, moves its cursor on, hands out what follows.
-- KEYS: 1 history, 2 cursor, 3 figures of the subscription
-- ARGV: 1 group, 2 worker, 3 ms after which a silent worker loses the channel, 4 its token or '' to ask for the channel,
--       5 position that was delivered or '', 6 messages at most, 7 bytes of messages after which it ends, 8 TTL of the
--       cursor in ms, 9 what the position counts as: "delivered", "filtered" or ''
-- Returns {how, token, position before, the newest kept before that or '', entries, ms, attempts}; how is "not_opened" when
-- the group has to be opened first, "lost" when another has the channel or it was moved, "owned_elsewhere" when another has it for
-- that many ms, "blocked" when a message failed and is tried again in that many ms, "empty" when there is nothing and the
-- channel is given back, "read", or "gap" when the first entry does not follow the position before.
-- May run twice: a token is given to one worker, and a cursor moved to the same place stays there.
local history, cursor, counters = KEYS[1], KEYS[2], KEYS[3]
local group, worker, lease_ms, given_token, delivered_position = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4], ARGV[5]
local max_messages, max_bytes, cursor_ttl_ms, counted_as = tonumber(ARGV[6]), tonumber(ARGV[7]), ARGV[8], ARGV[9]

local now = now_ms()
local known = redis.call('HMGET', cursor, 'd', 'o', 'k', 'u', 'w', 'n')
local position, owner, token = known[1], known[2], known[3]
if not position then return { 'not_opened', '', '', '', {}, 0, 0 } end
if given_token ~= '' then
  if token ~= given_token or owner ~= worker then return { 'lost', '', position, '', {}, 0, 0 } end
else
  local lease_left_ms = owner and owner ~= worker and (tonumber(known[4]) or 0) - now or 0
  if lease_left_ms > 0 then return { 'owned_elsewhere', '', position, '', {}, lease_left_ms, 0 } end
  token = string.format('%.0f', redis.call('HINCRBY', cursor, 'k', 1))
end
if delivered_position ~= '' then
  position = delivered_position
  redis.call('HSET', cursor, 'd', position)
  redis.call('HDEL', cursor, 'n', 'w', 'e')
  redis.pcall('XGROUP', 'SETID', history, group, position)
  known[5], known[6] = false, false
  if counted_as ~= '' then redis.call('HINCRBY', counters, counted_as, 1) end
  if counted_as == 'delivered' then
    redis.call('HSET', counters, 'last_delivered_at', string.format('%.0f', now))
    redis.call('HDEL', counters, 'failing_since')
  end
  extend_counters_ttl(counters)
end
redis.call('PEXPIRE', cursor, cursor_ttl_ms)
local blocked_ms = (tonumber(known[5]) or 0) - now
if blocked_ms > 0 then
  redis.call('HDEL', cursor, 'o', 'u')
  return { 'blocked', '', position, '', {}, blocked_ms, tonumber(known[6]) or 0 }
end
local entries, bytes, from = {}, 0, '(' .. position
while #entries < max_messages and bytes < max_bytes do
  local entry = redis.call('XRANGE', history, from, '+', 'COUNT', 1)[1]
  if not entry then break end
  entries[#entries + 1] = entry
  start = '(' .. entry[1]
  for i = 1, #entry[2], 2 do bytes = bytes + #entry[2][i + 1] end
end
if #entries == 0 and max_messages > 0 then
  redis.call('HDEL', cursor, 'o', 'u')
  return { 'empty', '', position, '', {}, 0, 0 }
end
redis.call('HSET', cursor, 'o', worker, 'u', string.format('%.0f', now + lease_ms))
local how, before = 'read', ''
if #entries > 0 then how, before = check_gap(history, position, entries[1][1]) end
return { how, token, position, before, entries, 0, tonumber(known[6]) or 0 }
