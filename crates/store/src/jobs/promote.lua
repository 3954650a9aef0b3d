#!lua flags=allow-oom
-- Moves jobs into their stream: those that are due or that a client runs now, or pending jobs that a client activates. At
-- most 100 at once.
-- KEYS: 1 due or pending, 2 priorities, 3 stream, 4 stats, 5.. records
-- ARGV: 1 "due" to check that the jobs are due, else "due_at_once" or "pending", 2 priority, 3 notification channel, 4 notification, 5.. ids
-- Returns how many jobs it moved.
-- May run twice: the second run no longer finds them in the set.
local waiting, priorities, stream, stats = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local first_record = 5
local kind, priority, notifications, notification = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local first_id = 5

local now, moved, retryable = now_ms(), 0, 0
for i = 0, #ARGV - first_id do
  local id, record = ARGV[first_id + i], KEYS[first_record + i]
  local score = redis.call('ZSCORE', waiting, id)
  if score and (kind ~= 'due' or tonumber(score) <= now) then
    local known = redis.call('HGETALL', record)
    local fields = entry_fields(id, known)
    if fields then
      local entry
      -- The first entry creates the stream if it is missing
      if moved == 0 then
        entry = add_entry(stream, priorities, priority, notifications, notification, fields)
      else
        entry = redis.call('XADD', stream, '*', unpack(fields))
      end
      note_entry(record, priority, entry)
      moved = moved + 1
      for field = 1, #known, 2 do
        if known[field] == 's' and known[field + 1] == 'retryable' then retryable = retryable + 1 end
      end
    end
    redis.call('ZREM', waiting, id)
  end
end
if retryable > 0 then redis.call('HINCRBY', stats, 'retryable', -retryable) end
return moved
