#!lua
-- Stores a cron entry, if the old one is stored as the caller read it.
-- KEYS: 1 entries, 2 next runs
-- ARGV: 1 name, 2 entry as the caller read it or "" for none, 3 new entry, 4 time of its next run in ms or "" for
--       never, 5 max entries, 6 notification channel, 7 notification
-- Returns "saved", "already_saved" when the new entry is stored already, "changed" when another one is stored, or
-- "full" when there is no room for another entry.
-- May run twice: the second run finds the new entry.
local entries, next_runs = KEYS[1], KEYS[2]
local name, known_entry, new_entry, next_run_at = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local max_entries, notifications, notification = ARGV[5], ARGV[6], ARGV[7]

local refusal = compare_and_set(entries, name, known_entry, new_entry, max_entries)
if refusal then return refusal end
redis.call('HSET', entries, name, new_entry)
if next_run_at == '' then
  redis.call('ZREM', next_runs, name)
else
  set_due(next_runs, name, tonumber(next_run_at), notifications, notification)
end
return 'saved'
