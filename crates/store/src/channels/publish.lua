#!lua
-- Adds a message to a channel's history and sends it to a client that listens.
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
local history, state_key, outcome = KEYS[1], KEYS[2], KEYS[3]
local channel, live_channel, data_epoch, max_messages = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local max_messages_with_subscriptions, min_ttl_ms, ttl_margin_ms = ARGV[5], tonumber(ARGV[6]), tonumber(ARGV[7])
local body, content_type, attributes, is_registered = ARGV[8], ARGV[9], ARGV[10], ARGV[11] == '1'
local has_subscriptions, outcome_ttl_ms = ARGV[12] == '1', ARGV[13]

if outcome then
  local earlier = redis.call('GET', outcome)
  if earlier then
    local position, listeners = string.match(earlier, '^(%S+) (%d+)$')
    return { position, tonumber(listeners), 0 }
  end
end
local known, now = redis.call('HMGET', state_key, 'e', 'x', 's'), now_ms()
local epoch = known[1]
if is_registered and redis.call('EXISTS', history) == 0 then
  epoch = string.format('%.0f', math.max(now, (tonumber(epoch) or 0) + 1))
elseif not epoch then
  if redis.call('EXISTS', history) == 0 then return false end
  epoch = string.match(last_id(history), '^(%d+)%-')
end
if tonumber(epoch) < tonumber(data_epoch) then epoch = data_epoch end

local at = string.format('%.0f', now)
local fields = { 'b', body, 'a', at }
if content_type ~= '' then
  fields[5], fields[6] = 't', content_type
end
if attributes ~= '' then
  fields[#fields + 1] = 'h'
  fields[#fields + 1] = attributes
end
local max, id, position = known[3] and max_messages_with_subscriptions or max_messages, epoch .. '-*', nil
if is_registered then
  position = redis.call('XADD', history, 'MAXLEN', '~', max, id, unpack(fields))
else
  position = redis.call('XADD', history, 'NOMKSTREAM', 'MAXLEN', '~', max, id, unpack(fields))
  if not position then return false end
end

local expires, max_ttl_ms = tonumber(known[2]) or 0, min_ttl_ms + ttl_margin_ms
-- Later than the longest TTL allows: the setting or the clock was changed
local is_due = is_registered or expires < now + min_ttl_ms or expires > now + max_ttl_ms
if is_due then
  local fields_of_state = { 'e', epoch, 'x', string.format('%.0f', now + max_ttl_ms) }
  -- Spares what they need from trimming before they have their groups
  if has_subscriptions then fields_of_state[5], fields_of_state[6] = 's', '1' end
  redis.call('HSET', state_key, unpack(fields_of_state))
  redis.call('PEXPIRE', history, string.format('%.0f', max_ttl_ms))
  redis.call('PEXPIRE', state_key, string.format('%.0f', max_ttl_ms))
elseif known[1] ~= epoch then
  redis.call('HSET', state_key, 'e', epoch)
end

local head = position .. ' ' .. at .. ' ' .. #content_type .. ' ' .. #attributes
redis.call('PUBLISH', live_channel, head .. '\n' .. content_type .. attributes .. body)
local listeners = redis.call('PUBLISH', channel, body)
if outcome then redis.call('SET', outcome, position .. ' ' .. listeners, 'PX', outcome_ttl_ms) end
return { position, listeners, is_due and not is_registered and 1 or 0 }
