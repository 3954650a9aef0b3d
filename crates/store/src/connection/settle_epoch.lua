#!lua
-- Finds the epoch in which new messages are numbered. Each run of a Redis server has its own replication id. If the id
-- differs from the stored one, acknowledged messages may be lost, so positions must not continue at the end of the
-- history: a new epoch starts.
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
