#!lua
-- Lets one worker at a time deliver a channel in order: gives it the channel, moves its cursor on, hands out what follows.
-- KEYS: 1 history, 2 cursor, 3 figures of the subscription
-- ARGV: 1 group, 2 worker, 3 ms after which a silent worker loses the channel, 4 its token or '' to ask for the channel,
--       5 position that was delivered or '', 6 messages at most, 7 bytes of messages after which it ends, 8 TTL of the
--       cursor in ms, 9 what the position counts as: "delivered", "filtered" or ''
-- Returns {how, token, position before, the newest kept before that or '', entries, ms, attempts}; how is "closed" when
-- the group has to be opened first, "lost" when another has the channel or it was moved, "held" when another has it for
-- so many ms, "wait" when a message failed and is tried again in so many ms, "empty" when there is nothing and the
-- channel is given back, "read", or "gap" when the first entry does not follow the position before.
-- May run twice: a token is given to one worker, and a cursor moved to the same place stays there.
local now = now_ms()
local known = redis.call('HMGET', KEYS[2], 'd', 'o', 'k', 'u', 'w', 'n')
local position, owner, token = known[1], known[2], known[3]
if not position then return { 'closed', '', '', '', {}, 0, 0 } end
if ARGV[4] ~= '' then
  if token ~= ARGV[4] or owner ~= ARGV[2] then return { 'lost', '', position, '', {}, 0, 0 } end
else
  local left = owner and owner ~= ARGV[2] and (tonumber(known[4]) or 0) - now or 0
  if left > 0 then return { 'held', '', position, '', {}, left, 0 } end
  token = string.format('%.0f', redis.call('HINCRBY', KEYS[2], 'k', 1))
end
if ARGV[5] ~= '' then
  position = ARGV[5]
  redis.call('HSET', KEYS[2], 'd', position)
  redis.call('HDEL', KEYS[2], 'n', 'w', 'e')
  redis.pcall('XGROUP', 'SETID', KEYS[1], ARGV[1], position)
  known[5], known[6] = false, false
  if ARGV[9] ~= '' then redis.call('HINCRBY', KEYS[3], ARGV[9], 1) end
  if ARGV[9] == 'delivered' then
    redis.call('HSET', KEYS[3], 'at', string.format('%.0f', now))
    redis.call('HDEL', KEYS[3], 'failing')
  end
  keep_figures(KEYS[3])
end
redis.call('PEXPIRE', KEYS[2], ARGV[8])
local wait = (tonumber(known[5]) or 0) - now
if wait > 0 then
  redis.call('HDEL', KEYS[2], 'o', 'u')
  return { 'wait', '', position, '', {}, wait, tonumber(known[6]) or 0 }
end
local entries, bytes, from = {}, 0, '(' .. position
while #entries < tonumber(ARGV[6]) and bytes < tonumber(ARGV[7]) do
  local entry = redis.call('XRANGE', KEYS[1], from, '+', 'COUNT', 1)[1]
  if not entry then break end
  entries[#entries + 1] = entry
  from = '(' .. entry[1]
  for i = 1, #entry[2], 2 do bytes = bytes + #entry[2][i + 1] end
end
if #entries == 0 and tonumber(ARGV[6]) > 0 then
  redis.call('HDEL', KEYS[2], 'o', 'u')
  return { 'empty', '', position, '', {}, 0, 0 }
end
redis.call('HSET', KEYS[2], 'o', ARGV[2], 'u', string.format('%.0f', now + tonumber(ARGV[3])))
local how, before = 'read', ''
if #entries > 0 then how, before = look_between(KEYS[1], position, entries[1][1]) end
return { how, token, position, before, entries, 0, tonumber(known[6]) or 0 }
