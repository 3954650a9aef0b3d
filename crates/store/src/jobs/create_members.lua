#!lua
-- Creates jobs of workflows that start now and hold nothing but their records, all of one priority.
-- KEYS: 1 priorities, 2 stream, then the record and the result of each job
-- ARGV: 1 priority, 2 notification channel, 3 notification (stream), then of each job its id, the number of its fields and
--       values, and these
-- Returns "new" when the queue had no streams before, else "", then for each job its entry, or "" when it exists or did.
-- May run twice: the second run finds the records.
local priorities, stream = KEYS[1], KEYS[2]
local first_record = 3
local priority, notifications, stream_notification = ARGV[1], ARGV[2], ARGV[3]
local first_job = 4

local answers = { redis.call('EXISTS', priorities) == 0 and 'new' or '' }
local argument = first_job
local opened = {}
for record = first_record, #KEYS, 2 do
  local id, field_count = ARGV[argument], tonumber(ARGV[argument + 1])
  local first_field = argument + 2
  argument = first_field + field_count
  local entry = ''
  if redis.call('EXISTS', KEYS[record], KEYS[record + 1]) == 0 then
    local fields = { 'i', id, unpack(ARGV, first_field, argument - 1) }
    entry = add_entry(stream, priorities, priority, notifications, stream_notification, fields, opened)
    note_entry(KEYS[record], priority, entry)
  end
  answers[#answers + 1] = entry
end
return answers
