#!lua flags=allow-oom
-- Finds the epoch in which new messages are numbered. Each run of a Redis server has its own replication id. If the id
-- differs from the stored one, acknowledged messages may be lost, so positions must not continue at the end of the
-- history: a new epoch starts.
-- KEYS: 1 epoch
-- ARGV: none
-- Returns the epoch.
-- May run twice: the second run finds the id that the first one stored.
local stored_epoch = KEYS[1]

local is_allowed, info = pcall(redis.call, 'INFO', 'replication')
-- A hosted Redis may forbid INFO: then Galley cannot notice such a loss
local server_id = is_allowed and string.match(info, 'master_replid:(%x+)') or '0'
local epoch, epoch_server_id = string.match(redis.call('GET', stored_epoch) or '', '^(%d+) (%x+)$')
if epoch_server_id == server_id then return epoch end
epoch = string.format('%.0f', math.max(now_ms(), (tonumber(epoch) or 0) + 1))
redis.call('SET', stored_epoch, epoch .. ' ' .. server_id)
return epoch
