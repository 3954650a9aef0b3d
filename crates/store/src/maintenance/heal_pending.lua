#!lua flags=allow-oom
-- Lets the idle times of pending entries grow again after Redis's clock was set back: until it got where it was, they
-- would stay 0.
-- KEYS: 1 stream
-- ARGV: 1 group, 2 where to start: '-', or '(' and an entry, 3 max entries
-- Returns the last entry, or '' when there is no more.
-- May run twice: what is idle for no time stays idle for no time.
local stream = KEYS[1]
local group, start, max_entries = ARGV[1], ARGV[2], tonumber(ARGV[3])

local pending = redis.pcall('XPENDING', stream, group, start, '+', max_entries)
if pending.err then return '' end
for _, item in ipairs(pending) do
  local entry, consumer, idle_ms = item[1], item[2], item[3]
  if idle_ms <= 0 then redis.call('XCLAIM', stream, group, consumer, 0, entry, 'IDLE', 0, 'JUSTID') end
end
return #pending == max_entries and pending[#pending][1] or ''
