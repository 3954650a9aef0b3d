#!lua
-- Adds a message to a channel's history and sends it to whoever listens.
-- KEYS: 1 history, 2 state
-- ARGV: 1 channel, 2 live channel, 3 epoch of the data, 4 messages kept, about, 5 TTL in ms, 6 register again after ms,
--       7 1 if it was registered just now, 8 body, 9 content type or '', 10 attributes or '', 11 messages kept if there are
--       subscriptions, which the state says in `s`
-- Returns {position, listeners, 1 if it is to be registered again}, or nil: it has to be registered first.
-- Positions of a channel are <epoch>-0, <epoch>-1, ...: contiguous, so a gap can be seen. A history that begins again,
-- and one of which Redis may have lost the end, goes on in a later epoch.
-- Twice means two messages: the caller does not repeat it.
local known = redis.call('HMGET', KEYS[2], 'e', 'g', 's')
local now, epoch = now_ms(), tonumber(known[1]) or 0
local begins = redis.call('EXISTS', KEYS[1]) == 0
if begins and ARGV[7] ~= '1' then return false end
if not begins and not known[1] then
  local info = redis.call('XINFO', 'STREAM', KEYS[1])
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then epoch = tonumber(string.match(info[i + 1], '^(%d+)%-')) end
  end
end
local floor = begins and math.max(now, epoch + 1) or epoch
local epoch_now = string.format('%.0f', math.max(floor, tonumber(ARGV[3])))
local fields = { 'b', ARGV[8], 'a', string.format('%.0f', now) }
if ARGV[9] ~= '' then
  fields[#fields + 1] = 't'
  fields[#fields + 1] = ARGV[9]
end
if ARGV[10] ~= '' then
  fields[#fields + 1] = 'h'
  fields[#fields + 1] = ARGV[10]
end
local position = redis.call('XADD', KEYS[1], 'MAXLEN', '~', known[3] and ARGV[11] or ARGV[4], epoch_now .. '-*', unpack(fields))
redis.call('PEXPIRE', KEYS[1], ARGV[5])
local is_due = ARGV[7] ~= '1' and now - (tonumber(known[2]) or 0) > tonumber(ARGV[6])
if is_due or ARGV[7] == '1' then
  redis.call('HSET', KEYS[2], 'e', epoch_now, 'g', fields[4])
elseif known[1] ~= epoch_now then
  redis.call('HSET', KEYS[2], 'e', epoch_now)
end
redis.call('PEXPIRE', KEYS[2], ARGV[5])
local head = string.format('%s %s %d %d\n', position, fields[4], #ARGV[9], #ARGV[10])
redis.call('PUBLISH', ARGV[2], head .. ARGV[9] .. ARGV[10] .. ARGV[8])
return { position, redis.call('PUBLISH', ARGV[1], ARGV[8]), is_due and 1 or 0 }
