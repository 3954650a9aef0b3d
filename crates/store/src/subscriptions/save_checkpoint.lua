#!lua flags=allow-oom
-- Saves how far one worker of a broadcast is.
-- KEYS: 1 checkpoint of the worker
-- ARGV: 1 generation, 2 TTL in ms, 3 "1" if the call lists all channels, 4 the process, 5.. fields and values: channels and
--       positions, and when the worker started
-- Returns {1 if a checkpoint of this generation exists, else 0: then the next call must list all channels, the process
-- that saved last, or ''}.
-- May run twice: it saves the same positions again.
local checkpoint = KEYS[1]
local generation, ttl_ms, lists_all, process = ARGV[1], ARGV[2], ARGV[3] == '1', ARGV[4]
local first_field = 5

local known = redis.call('HMGET', checkpoint, '', ' by')
local is_known, saved_by = known[1] == generation, known[2] or ''
if not is_known or lists_all then redis.call('DEL', checkpoint) end
redis.call('HSET', checkpoint, '', generation, ' by', process)
-- One by one: there may be more channels than Lua passes as arguments
for i = first_field, #ARGV, 2 do redis.call('HSET', checkpoint, ARGV[i], ARGV[i + 1]) end
redis.call('PEXPIRE', checkpoint, ttl_ms)
return { is_known and 1 or 0, saved_by }
