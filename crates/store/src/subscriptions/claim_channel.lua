#!lua flags=allow-oom
-- Lets one worker at a time deliver a channel in order: claims the channel for it, moves its cursor, returns the next
-- messages.
-- KEYS: 1 history, 2 cursor, 3 state of the channel
-- ARGV: 1 group, 2 worker, 3 ms after which an idle worker loses the channel, 4 its token, or '' to claim the channel,
--       5 position that was delivered or '', 6 max messages, 7 bytes of messages at which the script stops, 8 TTL of
--       the cursor in ms, 9 when the subscription was created, in ms
-- Returns {outcome, token, position, last position up to there that is kept or '', entries, ms, failed attempts, workers
-- that vanished with the next message}.
-- Outcomes:
--   not_opened       the caller must open the group first, or it belongs to another subscription of that name
--   lost             another worker claimed the channel, or somebody moved the cursor
--   owned_elsewhere  another worker owns the channel, for another `ms`
--   blocked          a message failed, and its next attempt is in `ms`; the channel is released
--   empty            there is no message; the channel is released
--   read             the entries follow the position
--   gap              messages between the position and the first entry are missing
-- May run twice: one worker has a token, and the cursor moves to the same position.
local history, cursor, state = KEYS[1], KEYS[2], KEYS[3]
local group, worker, max_idle_ms, given_token = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local done_position, max_messages, max_bytes = ARGV[5], tonumber(ARGV[6]), tonumber(ARGV[7])
local cursor_ttl_ms, created_at = ARGV[8], ARGV[9]

local now = now_ms()
local known = redis.call('HMGET', cursor, 'd', 'o', 'k', 'u', 'w', 'n', 'wd', 'c', 'i')
local position, owner, token = known[1], known[2], known[3]
local owned_until, blocked_until, failures = tonumber(known[4]) or 0, tonumber(known[5]) or 0, tonumber(known[6]) or 0
if not position or known[9] ~= created_at then return { 'not_opened', '', '', '', {}, 0, 0, 0 } end
-- Redis's clock was set back: nothing lasts longer than when it was set
if owner and owned_until > now + max_idle_ms then
  owned_until = now + max_idle_ms
  redis.call('HSET', cursor, 'u', string.format('%.0f', owned_until))
end
if blocked_until > now + (tonumber(known[7]) or 0) then
  blocked_until = now + (tonumber(known[7]) or 0)
  redis.call('HSET', cursor, 'w', string.format('%.0f', blocked_until))
end
local crashes = tonumber(known[8]) or 0
if given_token ~= '' then
  if token ~= given_token or owner ~= worker then return { 'lost', '', position, '', {}, 0, 0, 0 } end
else
  local owned_ms = owner and owner ~= worker and owned_until - now or 0
  if owned_ms > 0 then return { 'owned_elsewhere', '', position, '', {}, owned_ms, 0, 0 } end
  -- Nobody released the channel: its owner vanished with the next message
  if owner and owner ~= worker then crashes = redis.call('HINCRBY', cursor, 'c', 1) end
  token = string.format('%.0f', redis.call('HINCRBY', cursor, 'k', 1))
end
if done_position ~= '' then
  position = done_position
  redis.call('HSET', cursor, 'd', position)
  redis.call('HDEL', cursor, 'n', 'w', 'wd', 'e', 'c')
  redis.pcall('XGROUP', 'SETID', history, group, position)
  blocked_until, failures, crashes = 0, 0, 0
end
redis.call('PEXPIRE', cursor, cursor_ttl_ms)
local blocked_ms = blocked_until - now
if blocked_ms > 0 then
  redis.call('HDEL', cursor, 'o', 'u')
  return { 'blocked', '', position, '', {}, blocked_ms, failures, 0 }
end
local entries, bytes, start = {}, 0, '(' .. position
while #entries < max_messages and bytes < max_bytes do
  local entry = redis.call('XRANGE', history, start, '+', 'COUNT', 1)[1]
  if not entry then break end
  entries[#entries + 1] = entry
  start = '(' .. entry[1]
  for i = 1, #entry[2], 2 do bytes = bytes + #entry[2][i + 1] end
end
if #entries == 0 and max_messages > 0 then
  redis.call('HDEL', cursor, 'o', 'u')
  return { 'empty', '', position, '', {}, 0, 0, 0 }
end
redis.call('HSET', cursor, 'o', worker, 'u', string.format('%.0f', now + max_idle_ms))
local outcome, before = 'read', ''
if #entries > 0 then outcome, before = check_gap(history, state, position, entries[1][1]) end
return { outcome, token, position, before, entries, 0, failures, crashes }
