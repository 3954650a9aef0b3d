-- Put in front of scripts that hand out what comes next in a channel: whether anything is missing before it.

-- Whether an entry is the next one behind a position. Behind the very beginning that is the first of an epoch.
local function follows(position, entry)
  if position == '0-0' then return string.match(entry, '%-(%d+)$') == '0' end
  local epoch, sequence = string.match(position, '^(%d+)%-(%d+)$')
  return entry == epoch .. '-' .. string.format('%.0f', tonumber(sequence) + 1)
end

-- "read", or "gap" when something is missing between a position and an entry; the newest kept up to the position, or ''.
local function look_between(history, position, entry)
  if follows(position, entry) then return 'read', '' end
  local kept = redis.call('XREVRANGE', history, position, '-', 'COUNT', 1)[1]
  local before = kept and kept[1] or ''
  return before == position and 'read' or 'gap', before
end
