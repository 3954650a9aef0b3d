#!lua flags=no-writes
-- Finds the first message of a channel that was published at a time or later.
-- KEYS: 1 history
-- ARGV: 1 time in ms, 2 max epochs to search
-- Returns {position before that message, or the last one when no message is that new, number of messages from there
-- on}, or nil when the channel has no history.
-- May run twice: it only reads.
local history = KEYS[1]
local time, max_epochs = tonumber(ARGV[1]), tonumber(ARGV[2])

local first = redis.call('XRANGE', history, '-', '+', 'COUNT', 1)[1]
if not first then return false end
local position, count = nil, 0
for _ = 1, max_epochs do
  local epoch, low = split(first[1])
  local last = last_of(history, epoch)
  local _, high = split(last[1])
  if position then
    count = count + high - low + 1
  elseif published_at(last) >= time then
    local sequence = first_at(history, epoch, low, high, time)
    position = join(epoch, sequence)
    count = high - sequence + 1
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
