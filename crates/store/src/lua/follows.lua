-- For scripts that read the next message of a channel: whether messages are missing before it.

-- Whether an entry is the next one after a position. After the position "0-0" that is the first entry of an epoch.
local function follows(position, entry)
  if position == '0-0' then return string.match(entry, '%-(%d+)$') == '0' end
  local epoch, sequence = string.match(position, '^(%d+)%-(%d+)$')
  return entry == epoch .. '-' .. string.format('%.0f', tonumber(sequence) + 1)
end

-- Returns "read", or "gap" when messages between a position and an entry are missing; and the last message that is kept
-- up to the position, or ''.
local function check_gap(history, state, position, entry)
  if follows(position, entry) then return 'read', '' end
  -- The first message of an epoch follows the last one before it
  if string.match(entry, '%-(%d+)$') == '0' then
    local known = redis.call('HMGET', state, 'e', 'p')
    if known[2] == position and known[1] == string.match(entry, '^%d+') then return 'read', '' end
  end
  local kept = redis.call('XREVRANGE', history, position, '-', 'COUNT', 1)[1]
  local before = kept and kept[1] or ''
  return before == position and 'read' or 'gap', before
end
