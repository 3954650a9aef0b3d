#!lua
-- Adds a message to a channel's history and sends it to whoever listens.
-- KEYS: 1 history, 2 state, 3 what became of this message, if the request may be repeated
-- ARGV: 1 channel, 2 live channel, 3 epoch of the data, 4 messages kept, about, 5 the same if there are subscriptions, which the
--       state says in `s`, 6 the least TTL in ms, 7 how much longer it is made, in ms, 8 body, 9 content type or '',
--       10 attributes or '', 11 1 if the channel was registered just now else 0, 12 1 if it has subscriptions then else 0, 13 TTL of
--       KEYS[3] in ms
-- Returns {position, listeners, 1 if it is to be registered again}, or nil: it has to be registered first.
-- Positions of a channel are <epoch>-0, <epoch>-1, ...: contiguous, so a gap can be seen. A history that begins again,
-- and one of which Redis may have lost the end, goes on in a later epoch.
-- Each call that a script makes costs as much as adding the message, so what need not be done for every message is not: TTLs
-- are set when less than the least is left, and whether there is a history is found out by adding to it.
-- Twice means two messages, unless KEYS[3] is given: then the second finds what the first did. Without it the caller does not
-- repeat it.
if KEYS[3] then
  local was = redis.call('GET', KEYS[3])
  if was then
    local position, listeners = string.match(was, '^(%S+) (%d+)$')
    return { position, tonumber(listeners), 0 }
  end
end
local known, now = redis.call('HMGET', KEYS[2], 'e', 'x', 's'), now_ms()
local epoch, is_registered = known[1], ARGV[11] == '1'
if is_registered and redis.call('EXISTS', KEYS[1]) == 0 then
  epoch = string.format('%.0f', math.max(now, (tonumber(epoch) or 0) + 1))
elseif not epoch then
  if redis.call('EXISTS', KEYS[1]) == 0 then return false end
  epoch = string.match(newest_ever(KEYS[1]), '^(%d+)%-')
end
if tonumber(epoch) < tonumber(ARGV[3]) then epoch = ARGV[3] end

local body, content_type, attributes, at = ARGV[8], ARGV[9], ARGV[10], string.format('%.0f', now)
local fields = { 'b', body, 'a', at }
if content_type ~= '' then
  fields[5], fields[6] = 't', content_type
end
if attributes ~= '' then
  fields[#fields + 1] = 'h'
  fields[#fields + 1] = attributes
end
local kept, id, position = known[3] and ARGV[5] or ARGV[4], epoch .. '-*', nil
if is_registered then
  position = redis.call('XADD', KEYS[1], 'MAXLEN', '~', kept, id, unpack(fields))
else
  position = redis.call('XADD', KEYS[1], 'NOMKSTREAM', 'MAXLEN', '~', kept, id, unpack(fields))
  if not position then return false end
end

local expires, least = tonumber(known[2]) or 0, tonumber(ARGV[6])
local most = least + tonumber(ARGV[7])
-- More than the most: the setting or the clock was changed
local is_due = is_registered or expires < now + least or expires > now + most
if is_due then
  local state = { 'e', epoch, 'x', string.format('%.0f', now + most) }
  -- Spares what they need from trimming before they have their groups
  if ARGV[12] == '1' then state[5], state[6] = 's', '1' end
  redis.call('HSET', KEYS[2], unpack(state))
  redis.call('PEXPIRE', KEYS[1], string.format('%.0f', most))
  redis.call('PEXPIRE', KEYS[2], string.format('%.0f', most))
elseif known[1] ~= epoch then
  redis.call('HSET', KEYS[2], 'e', epoch)
end

local head = position .. ' ' .. at .. ' ' .. #content_type .. ' ' .. #attributes
redis.call('PUBLISH', ARGV[2], head .. '\n' .. content_type .. attributes .. body)
local listeners = redis.call('PUBLISH', ARGV[1], body)
if KEYS[3] then redis.call('SET', KEYS[3], position .. ' ' .. listeners, 'PX', ARGV[13]) end
return { position, listeners, is_due and not is_registered and 1 or 0 }
