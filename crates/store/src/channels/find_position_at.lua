#!lua flags=no-writes
-- Finds the first message of a channel that was published at a time or later.
-- KEYS: 1 history
-- ARGV: 1 time in ms, 2 max epochs to search
-- Returns {position before that message, or the last one when no message is that new, number of messages from there
-- on}, or nil when the channel has no history.
-- May run twice: it only reads.
local history = KEYS[1]
local time, max_epochs = tonumber(ARGV[1]), tonumber(ARGV[2])

-- Publishers that do not run a script take the time from their own reading of Redis's clock: messages may be this much out
-- of order.
local MAX_DISORDER_MS = 50

-- The sequence of the first message of an epoch, from `low` to `high`, that is not older than the time; nil if none is.
local function first_not_older(epoch, low, high)
  local sequence = first_at(history, epoch, low, high, time - MAX_DISORDER_MS)
  while sequence <= high do
    local entries = redis.call('XRANGE', history, join(epoch, sequence), join(epoch, high), 'COUNT', 64)
    for _, entry in ipairs(entries) do
      local _, of_entry = split(entry[1])
      if published_at(entry) >= time then return of_entry end
      sequence = of_entry + 1
    end
    if #entries == 0 then return nil end
  end
  return nil
end

local first = redis.call('XRANGE', history, '-', '+', 'COUNT', 1)[1]
if not first then return false end
local position, count = nil, 0
for _ = 1, max_epochs do
  local epoch, low = split(first[1])
  local last = last_of(history, epoch)
  local _, high = split(last[1])
  if position then
    count = count + high - low + 1
  elseif published_at(last) >= time - MAX_DISORDER_MS then
    local sequence = first_not_older(epoch, low, high)
    if sequence then
      position = join(epoch, sequence)
      count = high - sequence + 1
    end
  end
  first = redis.call('XRANGE', history, '(' .. epoch .. BEHIND_ALL, '+', 'COUNT', 1)[1]
  if not first then
    if not position then return { last[1], 0 } end
    break
  end
end
if not position then return { '', 0 } end
local before = redis.call('XREVRANGE', history, '(' .. position, '-', 'COUNT', 1)[1]
return { before and before[1] or '', count }
