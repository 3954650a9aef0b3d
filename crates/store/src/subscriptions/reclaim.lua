#!lua
-- Reclaims pending messages of a channel: those of idle workers, or a worker's own whose reply it never received.
-- KEYS: 1 history, 2 cursor
-- ARGV: 1 group, 2 consumer, 3 least silence in ms, 4 messages at most, 5 bytes after which it ends,
--       6 whose they are, or '' for anybody's, 7 where to begin: '-', or '(' and a position to begin behind
-- Returns {entries, how often each was handed out before, positions that are not kept any more, {position, the newest kept
--          before that or '', first message behind what was missing there, ...}, the position up to which was looked if there
--          may be more behind it, else ''}: a gap is told again with the message behind it.
-- A lost answer leaves them handed out: a worker looks for its own after an error.
local history, cursor = KEYS[1], KEYS[2]
local group, consumer, min_idle_ms = ARGV[1], ARGV[2], ARGV[3]
local max_messages, max_bytes = tonumber(ARGV[4]), tonumber(ARGV[5])
local owner, start = ARGV[6], ARGV[7]

local arguments = { 'XPENDING', history, group, 'IDLE', min_idle_ms, start, '+', max_messages }
if owner ~= '' then arguments[#arguments + 1] = owner end
local function pending(history)
  return redis.pcall('XPENDING', history, unpack(arguments, 3))
end
local waiting = pending(history)
if waiting.err then
  if string.find(waiting.err, 'NOGROUP', 1, true) then return { {}, {}, {}, {}, '' } end
  return redis.error_reply(waiting.err)
end
local entries, times, lost, gaps, bytes, seen = {}, {}, {}, {}, 0, 0
local missing = {}
for position, before, to in string.gmatch(redis.call('HGET', cursor, 'g') or '', '(%S+) (%S+) (%S+)') do
  missing[to] = { position, before == '-' and '' or before }
end
for _, item in ipairs(waiting) do
  if bytes >= max_bytes then break end
  seen = seen + 1
  -- A client that finds its own has not vanished
  local count = owner == consumer and { 'RETRYCOUNT', item[4] } or {}
  local claimed = redis.call('XCLAIM', history, group, consumer, min_idle_ms, item[1], unpack(count))
  local entry, gap = claimed[1], missing[item[1]]
  if gap then
    for _, word in ipairs({ gap[1], gap[2], message }) do gaps[#gaps + 1] = word end
  end
  if entry then
    entries[#entries + 1] = entry
    deliveries[#deliveries + 1] = delivery_count
    for i = 1, #entry[2], 2 do bytes = bytes + #entry[2][i + 1] end
  else
    redis.call('XACK', history, group, item[1])
    lost[#lost + 1] = item[1]
  end
end
local is_whole = seen == #waiting and seen < max_messages
return { entries, times, lost, gaps, is_whole and '' or waiting[seen][1] }
