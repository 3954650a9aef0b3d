#!lua
-- Hands messages of channels to a worker, in order within each, and tells what is missing before them.
-- KEYS: history and cursor of each channel
-- ARGV: 1 group, 2 consumer, 3 messages at most, 4 bytes of messages after which it ends, 5 TTL of a cursor in ms
-- Returns for each channel that was looked at {its number, how, position before, the newest kept before that or '', entries,
-- 1 if there may be more}; how is "not_opened" when the group has to be opened first, "empty", "read", or "gap" when the
-- first entry does not follow the position before.
-- A lost answer leaves messages handed out: a worker looks for its own after an error. What was missing before one of them is
-- kept in the cursor, as `g`, so that a client that takes that message over is told, too.
local group, consumer, max_messages, max_bytes = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local cursor_ttl_ms = tonumber(ARGV[5])

local MAX_READ, MAX_GAPS = 8, 16
local wanted, bytes = max_messages, 0
local out = {}

-- Adds a gap to those that are kept, and drops those whose next message is done with.
local function keep_gap(history, cursor, gap, to)
  local kept = { gap .. ' ' .. to }
  for known, first in string.gmatch(redis.call('HGET', cursor, 'g') or '', '(%S+ %S+) (%S+)') do
    local is_out = #kept < MAX_GAPS and first ~= to and redis.call('XPENDING', history, group, first, first, 1)[1]
    if is_out then kept[#kept + 1] = known .. ' ' .. first end
  end
  redis.call('HSET', cursor, 'g', table.concat(kept, ' '))
end

for number = 1, #KEYS / 2 do
  local history, cursor = KEYS[2 * number - 1], KEYS[2 * number]
  if wanted <= 0 or bytes >= max_bytes then break end
  local position = redis.call('HGET', cursor, 'd')
  local following = position and redis.call('XRANGE', history, '(' .. position, '+', 'COUNT', 1)[1]
  if not position then
    out[#out + 1] = { number, 'not_opened', '', '', {}, 0 }
  elseif not following then
    -- A channel that is quiet for long keeps its place
    if redis.call('PTTL', cursor) < cursor_ttl_ms / 2 then redis.call('PEXPIRE', cursor, cursor_ttl_ms) end
    out[#out + 1] = { number, 'empty', position, '', {}, 0 }
  else
    local how, before = check_gap(history, position, following[1])
    local entries, more = {}, 1
    while wanted > 0 and bytes < max_bytes and more == 1 do
      local count = math.min(MAX_READ, wanted)
      local reply = redis.pcall('XREADGROUP', 'GROUP', group, consumer, 'COUNT', count, 'STREAMS', history, '>')
      if reply and reply.err then
        if not string.find(reply.err, 'NOGROUP', 1, true) then return redis.error_reply(reply.err) end
        how, more = 'not_opened', 0
      elseif not reply then
        has_more = 0
      else
        local read = reply[1][2]
        for _, entry in ipairs(read) do
          entries[#entries + 1] = entry
          for i = 1, #entry[2], 2 do bytes = bytes + #entry[2][i + 1] end
        end
        wanted = wanted - #got
        if #got < count then more = 0 end
      end
    end
    if #entries > 0 then
      if outcome == 'gap' then
        store_gap(history, cursor, position .. ' ' .. (before == '' and '-' or before), entries[1][1])
      end
      redis.call('HSET', cursor, 'd', entries[#entries][1])
      redis.call('PEXPIRE', cursor, cursor_ttl_ms)
    elseif how ~= 'not_opened' then
      -- The group is beyond its cursor: somebody else moved it
      redis.call('XGROUP', 'SETID', history, group, position)
      how, more = 'read', 1
    end
    replies[#replies + 1] = { number, outcome, position, before, entries, has_more }
  end
end
return replies
