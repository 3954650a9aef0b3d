#!lua flags=allow-oom
-- Reclaims pending messages of a channel: those of idle workers, or a worker's own whose reply it never received.
-- KEYS: 1 history, 2 cursor
-- ARGV: 1 group, 2 consumer, 3 min idle time in ms, 4 max messages, 5 bytes of messages at which the script stops,
--       6 consumer whose messages it reclaims, or '' for all consumers, 7 where to start: '-', or '(' and the position
--       after which to start, 8 when the subscription was created, in ms
-- Returns {entries, how often each was delivered before, positions of messages that are not kept any more, {position,
-- last position up to there that is kept or '', first message after the gap, ...}, position after which to continue or
-- '' when there is no more}. A message that follows a gap reports the gap again.
-- May run twice: the messages of a lost reply are pending for the worker, which reclaims its own after an error.
local history, cursor = KEYS[1], KEYS[2]
local group, consumer, min_idle_ms, max_messages = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local max_bytes, from_consumer, start = tonumber(ARGV[5]), ARGV[6], ARGV[7]
local created_at = ARGV[8]

-- The group belongs to another subscription of that name
local owner = redis.call('HGET', cursor, 'i')
if owner and owner ~= created_at then return { {}, {}, {}, {}, '' } end
local range = { group, 'IDLE', min_idle_ms, start, '+', max_messages }
if from_consumer ~= '' then range[#range + 1] = from_consumer end
local pending = redis.pcall('XPENDING', history, unpack(range))
if pending.err then
  if string.find(pending.err, 'NOGROUP', 1, true) then return { {}, {}, {}, {}, '' } end
  return redis.error_reply(pending.err)
end
local entries, deliveries, lost, gaps, bytes, seen = {}, {}, {}, {}, 0, 0
local gap_before = {}
for position, before, message in string.gmatch(redis.call('HGET', cursor, 'g') or '', '(%S+) (%S+) (%S+)') do
  gap_before[message] = { position, before == '-' and '' or before }
end
for _, item in ipairs(pending) do
  if bytes >= max_bytes then break end
  seen = seen + 1
  local message, delivery_count = item[1], item[4]
  -- A worker that reclaims its own messages has not crashed: no delivery is counted
  local options = from_consumer == consumer and { 'RETRYCOUNT', delivery_count } or {}
  local claimed = redis.call('XCLAIM', history, group, consumer, min_idle_ms, message, unpack(options))
  local entry, gap = claimed[1], gap_before[message]
  if gap then
    for _, word in ipairs({ gap[1], gap[2], message }) do gaps[#gaps + 1] = word end
  end
  if entry then
    entries[#entries + 1] = entry
    deliveries[#deliveries + 1] = delivery_count
    for i = 1, #entry[2], 2 do bytes = bytes + #entry[2][i + 1] end
  else
    redis.call('XACK', history, group, message)
    lost[#lost + 1] = message
  end
end
local is_end = seen == #pending and seen < max_messages
return { entries, deliveries, lost, gaps, is_end and '' or pending[seen][1] }
