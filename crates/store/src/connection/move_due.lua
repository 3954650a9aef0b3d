#!lua flags=allow-oom
-- Changes when members of a sorted set are due, of those that are there.
-- KEYS: 1 timers, or another sorted set whose scores say when its members are due
-- ARGV: 1 time at which they are due, in ms, 2 "LT" to change no earlier time, else "XX", 3 notification channel,
--       4 notification (due), 5.. members, at most 200
-- Returns 1.
-- May run twice: it sets the time to the same value.
local timers = KEYS[1]
local due_at, only, notifications, notification = tonumber(ARGV[1]), ARGV[2], ARGV[3], ARGV[4]
local first_member = 5

for i = first_member, #ARGV do
  if redis.call('ZSCORE', timers, ARGV[i]) then
    set_due(timers, ARGV[i], due_at, notifications, notification, only)
  end
end
return 1
