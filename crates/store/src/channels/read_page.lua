#!lua flags=no-writes
-- A page of a channel's history.
-- KEYS: 1 history
-- ARGV: 1 after this position, 2 messages at most, 3 bytes of bodies after which it ends
-- Returns {newest position ever or '', 1 if ARGV[1] is kept else 0, the newest that is kept before ARGV[1] or '',
--          1 if there is more else 0, entries}.
-- May run twice: it only reads.
local history = KEYS[1]
local after, max_messages, max_bytes = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])

-- Messages may be long, and what is read beyond the limit is read in vain
local MAX_READ = 64
local head = redis.call('EXISTS', history) == 1 and last_id(history) or ''
local before = redis.call('XREVRANGE', history, after, '-', 'COUNT', 2)
local is_kept = before[1] ~= nil and before[1][1] == after
local newest_before = before[is_kept and 2 or 1]
local found, bytes, from, is_more, count = {}, 0, '(' .. after, 1, 1
while #found < max_messages and bytes < max_bytes and is_more == 1 do
  local entries = redis.call('XRANGE', history, from, '+', 'COUNT', math.min(count, max_messages - #found))
  if #entries == 0 then is_more = 0 end
  for _, entry in ipairs(entries) do
    if bytes < max_bytes then
      found[#found + 1] = entry
      for i = 1, #entry[2], 2 do bytes = bytes + #entry[2][i + 1] end
      from = '(' .. entry[1]
    end
  end
  local mean = math.max(1, bytes / math.max(1, #found))
  count = math.max(1, math.min(MAX_READ, 2 * count, math.ceil((max_bytes - bytes) / mean)))
end
if #found > 0 and found[#found][1] == head then is_more = 0 end
return { head, is_kept and 1 or 0, newest_before and newest_before[1] or '', is_more, found }
