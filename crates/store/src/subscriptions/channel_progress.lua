#!lua flags=no-writes
-- How far a reader of a channel is.
-- KEYS: 1 history, 2 cursor
-- ARGV: 1 group or '', 2 position, or '' for that of the cursor, 3 epochs looked through at most
-- Returns {position or '', newest position ever or '', messages behind the position, messages handed out and not done with,
--          attempts at the next message that failed, when it is tried again in ms or 0, what went wrong or ''}.
-- Positions of an epoch have no gaps, so messages are counted by subtracting.
-- May run twice: it only reads.
local history, cursor = KEYS[1], KEYS[2]
local group, given_position, max_epochs = ARGV[1], ARGV[2], tonumber(ARGV[3])

local known = redis.call('HMGET', cursor, 'd', 'n', 'w', 'e')
local position = given_position ~= '' and given_position or known[1] or ''
local attempts, at, problem = tonumber(known[2]) or 0, tonumber(known[3]) or 0, known[4] or ''
if redis.call('EXISTS', history) == 0 then return { position, '', 0, 0, attempts, at, problem } end
local head = last_id(history)
local lag, from = 0, position == '' and '-' or '(' .. position
for _ = 1, max_epochs do
  local first = redis.call('XRANGE', history, from, '+', 'COUNT', 1)[1]
  if not first then break end
  local epoch, low = split(first[1])
  local _, high = split(last_of(history, epoch)[1])
  lag = lag + high - low + 1
  from = '(' .. epoch .. BEHIND_ALL
end
local pending = 0
if group ~= '' then
  local summary = redis.pcall('XPENDING', history, group)
  if not summary.err then pending = summary[1] end
end
return { position, head, lag, pending, attempts, at, problem }
