#!lua flags=no-writes
-- The first message of a channel that was published at a time or later. Positions hold no time, but messages do, and
-- those of an epoch are numbered without gaps: so halving finds it.
-- KEYS: 1 history
-- ARGV: 1 time in ms, 2 epochs looked through at most
-- Returns {position before that message, or of the newest if there is none, messages from there on}, or nil: no history.
-- May run twice: it only reads.
local at, epochs = tonumber(ARGV[1]), tonumber(ARGV[2])
local LAST = '-18446744073709551615'

local function split(id)
  local epoch, sequence = string.match(id, '^(%d+)%-(%d+)$')
  return epoch, tonumber(sequence)
end

local function time(entry)
  for i = 1, #entry[2], 2 do
    if entry[2][i] == 'a' then return tonumber(entry[2][i + 1]) or 0 end
  end
  return 0
end

local first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
if not first then return false end
local position, count = nil, 0
for _ = 1, epochs do
  local epoch, low = split(first[1])
  local last = redis.call('XREVRANGE', KEYS[1], epoch .. LAST, '-', 'COUNT', 1)[1]
  local _, high = split(last[1])
  if position then
    count = count + high - low + 1
  elseif time(last) >= at then
    local top = high
    while low < high do
      local middle = math.floor((low + high) / 2)
      local entry = redis.call('XRANGE', KEYS[1], epoch .. '-' .. string.format('%.0f', middle), '+', 'COUNT', 1)[1]
      if time(entry) >= at then high = middle else low = middle + 1 end
    end
    position = epoch .. '-' .. string.format('%.0f', low)
    count = top - low + 1
  end
  first = redis.call('XRANGE', KEYS[1], '(' .. epoch .. LAST, '+', 'COUNT', 1)[1]
  if not first then
    if not position then return { last[1], 0 } end
    break
  end
end
if not position then return { '', 0 } end
local before = redis.call('XREVRANGE', KEYS[1], '(' .. position, '-', 'COUNT', 1)[1]
return { before and before[1] or '', count }
