#!lua
-- The epoch in which messages are numbered. Each run of a server has a replication id of its own: with another one than
-- noted, messages that were acknowledged may be missing, so positions must not go on where the history seems to end.
-- KEYS: 1 epoch
-- ARGV: none
-- Returns the epoch.
-- May run twice: it changes something only when the id is another.
local epoch_key = KEYS[1]

local known, info = pcall(redis.call, 'INFO', 'replication')
-- A hosted Redis may forbid INFO: then a loss that Redis keeps quiet about cannot be seen
local id = known and string.match(info, 'master_replid:(%x+)') or '0'
local epoch, of = string.match(redis.call('GET', epoch_key) or '', '^(%d+) (%x+)$')
if of == id then return epoch end
epoch = string.format('%.0f', math.max(now_ms(), (tonumber(epoch) or 0) + 1))
redis.call('SET', epoch_key, epoch .. ' ' .. id)
return epoch
