#!lua
-- Adds a message to a channel's history and tells everyone who listens.
-- KEYS: 1 history, 2 state, 3 outcome of this request, given only if the client may repeat it
-- ARGV: 1 channel, 2 live channel, 3 epoch of the data, 4 about how many messages to keep, 5 about how many to keep
--       when the channel has subscriptions (field `s` of the state), 6 min TTL in ms, 7 ms to add to it when the TTL is
--       set, 8 body, 9 content type or '', 10 attributes or '', 11 "1" if the caller registered the channel just now,
--       12 "1" if the channel had subscriptions then, 13 TTL of the outcome in ms, 14 body as it is stored if it is sealed,
--       15 traceparent or '', 16 tracestate and baggage or ''
-- Returns {position, listeners, 1 if the caller must register the channel again, the time in ms or nil if the message
-- was published before}, or nil when the caller must register the channel first and call again. A process that knows the
-- epoch and the time may add messages without the script for as long as the min TTL is above that of the setting.
-- Positions of a channel are <epoch>-0, <epoch>-1, ...: a missing number shows a gap. A history that starts again, or
-- whose end Redis may have lost, continues in a later epoch.
-- Each call to Redis in here costs as much as XADD itself. So TTLs are set only when less than the min TTL is left, and
-- XADD itself finds out whether the history exists.
-- May run twice with KEYS[3]: the second run returns the stored outcome. Without it a second run publishes a second
-- message, so the caller sends the script only once.
local history, state, outcome = KEYS[1], KEYS[2], KEYS[3]
local channel, live_channel, data_epoch = ARGV[1], ARGV[2], ARGV[3]
local max_kept, max_kept_for_subscriptions = ARGV[4], ARGV[5]
local min_ttl_ms, extra_ttl_ms = tonumber(ARGV[6]), tonumber(ARGV[7])
local body, content_type, attributes = ARGV[8], ARGV[9], ARGV[10]
local is_registered, has_subscriptions = ARGV[11] == '1', ARGV[12] == '1'
local outcome_ttl_ms, sealed_body, traceparent, trace_rest = ARGV[13], ARGV[14], ARGV[15], ARGV[16]
if sealed_body == '' then sealed_body = nil end

if outcome then
  local stored = redis.call('GET', outcome)
  if stored then
    local position, listeners = string.match(stored, '^(%S+) (%d+)$')
    return { position, tonumber(listeners), 0, false }
  end
end
local known, now = redis.call('HMGET', state, 'e', 'x', 's', 'l'), now_ms()
local known_epoch, expires_at, is_subscribed = known[1], tonumber(known[2]) or 0, known[3]
local epoch, predecessor = known_epoch, nil
if is_registered and redis.call('EXISTS', history) == 0 then
  epoch = string.format('%.0f', math.max(now, (tonumber(epoch) or 0) + 1))
  -- The history expired. Who had read up to its last message misses nothing
  predecessor = known[4]
elseif not epoch then
  if redis.call('EXISTS', history) == 0 then return false end
  epoch = string.match(last_id(history), '^(%d+)%-')
end
if tonumber(epoch) < tonumber(data_epoch) then
  epoch = data_epoch
  if redis.call('EXISTS', history) == 1 then predecessor = last_id(history) end
end

local published = string.format('%.0f', now)
local fields = { sealed_body and 'z' or 'b', sealed_body or body, 'a', published }
if content_type ~= '' then
  fields[5], fields[6] = 't', content_type
end
if attributes ~= '' then
  fields[#fields + 1] = 'h'
  fields[#fields + 1] = attributes
end
if traceparent and traceparent ~= '' then
  fields[#fields + 1] = 'c'
  fields[#fields + 1] = traceparent
end
if trace_rest and trace_rest ~= '' then
  fields[#fields + 1] = 'r'
  fields[#fields + 1] = trace_rest
end
local max_length, id, position = is_subscribed and max_kept_for_subscriptions or max_kept, epoch .. '-*', nil
if is_registered then
  position = redis.call('XADD', history, 'MAXLEN', '~', max_length, id, unpack(fields))
else
  position = redis.call('XADD', history, 'NOMKSTREAM', 'MAXLEN', '~', max_length, id, unpack(fields))
  if not position then return false end
end

local max_ttl_ms = min_ttl_ms + extra_ttl_ms
-- More than the max TTL is left after a change of the setting or of the clock
local is_ttl_due = is_registered or expires_at < now + min_ttl_ms or expires_at > now + max_ttl_ms
if is_ttl_due then
  local changes = { 'e', epoch, 'x', string.format('%.0f', now + max_ttl_ms) }
  -- Keeps trim_channel.lua from removing what subscriptions need before they have their groups
  if has_subscriptions then changes[5], changes[6] = 's', '1' end
  redis.call('HSET', state, unpack(changes))
  redis.call('PEXPIRE', history, string.format('%.0f', max_ttl_ms))
  -- Longer than the history: it tells the next one where this one ended
  redis.call('PEXPIRE', state, string.format('%.0f', 2 * max_ttl_ms))
elseif known_epoch ~= epoch then
  redis.call('HSET', state, 'e', epoch)
end
if known_epoch and known_epoch ~= epoch then
  -- `f` and `l` are of the earlier history
  redis.call('HDEL', state, 'p', 'l', 'f')
  if predecessor then redis.call('HSET', state, 'p', predecessor) end
end

publish_topic(live_channel, position)
local listeners = redis.pcall('PUBLISH', channel, body)
-- A user without this channel may keep histories, which Galley's own readers follow
if type(listeners) == 'table' then listeners = 0 end
if outcome then redis.call('SET', outcome, position .. ' ' .. listeners, 'PX', outcome_ttl_ms) end
return { position, listeners, is_ttl_due and not is_registered and 1 or 0, now }
