-- For scripts that count messages of a channel's history or look for a time in it. Messages of an epoch are numbered
-- without gaps, so a subtraction counts them. A position holds no time, but each message does, so a binary search finds
-- the first message of a time.

local BEHIND_ALL = '-18446744073709551615'

local function split(id)
  local epoch, sequence = string.match(id, '^(%d+)%-(%d+)$')
  return epoch, tonumber(sequence)
end

local function join(epoch, sequence)
  return epoch .. '-' .. string.format('%.0f', sequence)
end

local function published_at(entry)
  local fields = entry[2]
  for i = 1, #fields, 2 do
    if fields[i] == 'a' then return tonumber(fields[i + 1]) or 0 end
  end
  return 0
end

-- The last message of an epoch that has one.
local function last_of(history, epoch)
  return redis.call('XREVRANGE', history, epoch .. BEHIND_ALL, '-', 'COUNT', 1)[1]
end

-- The sequence of the first message of an epoch, from `low` to `high`, that was published at a time or later. The message
-- `high` must be one.
local function first_at(history, epoch, low, high, at)
  while low < high do
    local middle = math.floor((low + high) / 2)
    local entry = redis.call('XRANGE', history, join(epoch, middle), '+', 'COUNT', 1)[1]
    if published_at(entry) >= at then high = middle else low = middle + 1 end
  end
  return low
end
