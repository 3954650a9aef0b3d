#!lua
-- Adds a signal to those of a job that has not ended. A job that waits for it is due now.
-- KEYS: 1 record, 2 result, 3 signals, 4 due
-- ARGV: 1 id of the job, 2 name, 3 id of the signal, 4 the time in ms, 5 its data, 6 most signals, 7 most bytes of them, 8 TTL in
--       ms while the job does not wait, 9 notification channel, 10 notification
-- Returns {"added", its number, 1 if the job waited for it else 0}, {"known", its number, the signal as it is stored} when it came
-- before, {"full"} when the job has too many, or {"ended"}.
-- May run twice: the second run finds the signal by its id.
local record, result, signals, due = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local job, name, id, sent_at, data = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local max_signals, max_bytes, ttl_ms = tonumber(ARGV[6]), tonumber(ARGV[7]), ARGV[8]
local notifications, notification = ARGV[9], ARGV[10]

if redis.call('EXISTS', result) == 1 then return { 'ended' } end
-- A signal is "<ms> <name> <id> <data>"; the newest is the first
local stored, bytes = redis.call('LRANGE', signals, 0, -1), #data
for place, text in ipairs(stored) do
  if string.match(text, '^%d+ %S+ (%S+) ') == id then return { 'known', #stored - place + 1, text } end
  bytes = bytes + #text
end
if #stored >= max_signals or bytes > max_bytes then return { 'full' } end
redis.call('LPUSH', signals, sent_at .. ' ' .. name .. ' ' .. id .. ' ' .. data)
local fields = redis.call('HMGET', record, 's', 'g')
local waits_for = fields[1] == 'scheduled' and fields[2] and string.match(fields[2], '^%S+ %S+ (%S+) ')
if waits_for then redis.call('PERSIST', signals) else redis.call('PEXPIRE', signals, ttl_ms) end
if waits_for ~= name then return { 'added', #stored + 1, 0 } end
-- The caller makes it available at once; the leader does if the caller dies
local now = now_ms()
redis.call('HSET', record, 'd', string.format('%.0f', now))
set_due(due, job, now, notifications, notification)
return { 'added', #stored + 1, 1 }
