#!lua flags=allow-oom
-- Reads the next messages of a channel for a worker, in order, and tells which are missing before them.
-- KEYS: 1 history, 2 cursor, 3 state of the channel
-- ARGV: 1 group, 2 consumer, 3 max messages, 4 bytes of messages at which the script stops, 5 TTL of a cursor in ms,
--       6 when the subscription was created, in ms
-- Returns {outcome, position, last position up to there that is kept or '', entries, 1 if there may be more}. Outcomes:
--   not_opened  the caller must open the group first, or the group belongs to another subscription of that name
--   empty       there is no message
--   read        the entries follow the position
--   gap         messages between the position and the first entry are missing
-- May run twice: the second run reads other messages. If the reply of the first is lost, its messages are pending for
-- the worker, which reclaims its own after an error. Field `g` of the cursor keeps the gap before a pending message: a
-- worker that reclaims the message learns of the gap too.
local history, cursor, state = KEYS[1], KEYS[2], KEYS[3]
local group, consumer = ARGV[1], ARGV[2]
local max_messages, max_bytes, cursor_ttl_ms = tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5]
local created_at = ARGV[6]

local MAX_PER_READ, MAX_GAPS = 8, 16

-- Stores a gap in the cursor, and drops stored ones whose next message is no longer pending.
local function store_gap(gap, next_message)
  local kept = { gap .. ' ' .. next_message }
  for known, after in string.gmatch(redis.call('HGET', cursor, 'g') or '', '(%S+ %S+) (%S+)') do
    local is_pending = #kept < MAX_GAPS and after ~= next_message
      and redis.call('XPENDING', history, group, after, after, 1)[1]
    if is_pending then kept[#kept + 1] = known .. ' ' .. after end
  end
  redis.call('HSET', cursor, 'g', table.concat(kept, ' '))
end

local function size_of(entry)
  local size = 0
  for i = 1, #entry[2], 2 do size = size + #entry[2][i + 1] end
  return size
end

local known = redis.call('HMGET', cursor, 'd', 'i')
local position = known[2] == created_at and known[1]
if not position then return { 'not_opened', '', '', {}, 0 } end
local following = redis.call('XRANGE', history, '(' .. position, '+', 'COUNT', 1)[1]
if not following then
  -- The cursor of a channel without new messages must not expire
  if redis.call('PTTL', cursor) < tonumber(cursor_ttl_ms) / 2 then redis.call('PEXPIRE', cursor, cursor_ttl_ms) end
  return { 'empty', position, '', {}, 0 }
end
local outcome, before = check_gap(history, state, position, following[1])
local entries, bytes, has_more = {}, 0, 1
-- The next messages are probably as large as the last one
local probable_size = math.max(1, size_of(following))
while #entries < max_messages and bytes < max_bytes and has_more == 1 do
  local fitting = math.max(1, math.floor((max_bytes - bytes) / probable_size))
  local count = math.min(MAX_PER_READ, max_messages - #entries, fitting)
  local reply = redis.pcall('XREADGROUP', 'GROUP', group, consumer, 'COUNT', count, 'STREAMS', history, '>')
  if reply and reply.err then
    if not string.find(reply.err, 'NOGROUP', 1, true) then return redis.error_reply(reply.err) end
    outcome, has_more = 'not_opened', 0
  elseif not reply then
    has_more = 0
  else
    local read = reply[1][2]
    for _, entry in ipairs(read) do
      entries[#entries + 1] = entry
      probable_size = math.max(1, size_of(entry))
      bytes = bytes + probable_size
    end
    if #read < count then has_more = 0 end
  end
end
if #entries > 0 then
  if outcome == 'gap' then store_gap(position .. ' ' .. (before == '' and '-' or before), entries[1][1]) end
  redis.call('HSET', cursor, 'd', entries[#entries][1])
  redis.call('PEXPIRE', cursor, cursor_ttl_ms)
elseif outcome ~= 'not_opened' then
  -- The group is further than its cursor: somebody moved the cursor
  redis.call('XGROUP', 'SETID', history, group, position)
  outcome, has_more = 'read', 1
end
return { outcome, position, before, entries, has_more }
