#!lua flags=no-writes
-- Reads how far a subscription is in a channel.
-- KEYS: 1 history, 2 cursor
-- ARGV: 1 group or '', 2 position, or '' for that of the cursor, 3 max epochs to count, 4 "1" to count pending messages
-- Returns {position or '', last position that the history ever gave out or '', messages after the position, pending
-- messages, failed attempts at the next message, time of its next attempt in ms or 0, error or ''}.
-- Positions of an epoch have no gaps, so a subtraction counts messages.
-- May run twice: it only reads.
local history, cursor = KEYS[1], KEYS[2]
local group, given_position, max_epochs, counts_pending = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4] == '1'

local known = redis.call('HMGET', cursor, 'd', 'n', 'w', 'e')
local position = given_position ~= '' and given_position or known[1] or ''
local failures, next_attempt_at, problem = tonumber(known[2]) or 0, tonumber(known[3]) or 0, known[4] or ''
if redis.call('EXISTS', history) == 0 then return { position, '', 0, 0, failures, next_attempt_at, problem } end
-- A cursor that expired starts again where its group is
if position == '' and group ~= '' then position = last_delivered_ids(history)[group] or '' end
local head = last_id(history)
local lag, start = 0, position == '' and '-' or '(' .. position
-- Most channels have nothing that is not delivered
for _ = 1, position == head and 0 or max_epochs do
  local first = redis.call('XRANGE', history, start, '+', 'COUNT', 1)[1]
  if not first then break end
  local epoch, low = split(first[1])
  local _, high = split(last_of(history, epoch)[1])
  lag = lag + high - low + 1
  start = '(' .. epoch .. BEHIND_ALL
end
local pending = 0
if counts_pending then
  local summary = redis.pcall('XPENDING', history, group)
  if not summary.err then pending = summary[1] end
end
return { position, head, lag, pending, failures, next_attempt_at, problem }
