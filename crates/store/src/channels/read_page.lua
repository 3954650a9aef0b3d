#!lua flags=no-writes
-- Reads a page of a channel's history.
-- KEYS: 1 history, 2 state of the channel
-- ARGV: 1 position after which the page starts, 2 max messages, 3 bytes of messages at which the page ends
-- Returns {last position that the history ever gave out or '', 1 if the message at ARGV[1] is kept else 0, last
-- position before ARGV[1] that is kept or '', 1 if there is more else 0, entries, last position before the epoch of the
-- history, or before a history that expired, or ''}.
-- May run twice: it only reads.
local history, state = KEYS[1], KEYS[2]
local after, max_messages, max_bytes = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])

-- Messages may be long, and a read beyond the limit is wasted
local MAX_PER_READ = 64
local exists = redis.call('EXISTS', history) == 1
local head = exists and last_id(history) or ''
local predecessor = redis.call('HGET', state, exists and 'p' or 'l') or ''
local before = redis.call('XREVRANGE', history, after, '-', 'COUNT', 2)
local is_kept = before[1] ~= nil and before[1][1] == after
local last_before = before[is_kept and 2 or 1]
local page, bytes, start, has_more, count = {}, 0, '(' .. after, 1, 1
while #page < max_messages and bytes < max_bytes and has_more == 1 do
  local entries = redis.call('XRANGE', history, start, '+', 'COUNT', math.min(count, max_messages - #page))
  if #entries == 0 then has_more = 0 end
  for _, entry in ipairs(entries) do
    if bytes < max_bytes then
      page[#page + 1] = entry
      for i = 1, #entry[2], 2 do bytes = bytes + #entry[2][i + 1] end
      start = '(' .. entry[1]
    end
  end
  local mean_bytes = math.max(1, bytes / math.max(1, #page))
  count = math.max(1, math.min(MAX_PER_READ, 2 * count, math.ceil((max_bytes - bytes) / mean_bytes)))
end
if #page > 0 and page[#page][1] == head then has_more = 0 end
return { head, is_kept and 1 or 0, last_before and last_before[1] or '', has_more, page, predecessor }
