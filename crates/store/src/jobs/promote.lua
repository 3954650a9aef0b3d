#!lua flags=allow-oom
-- Moves jobs whose time has come, or that are activated, into their stream. At most 100 at once.
-- KEYS: 1 due or pending, 2 priorities, 3 stream, 4.. records
-- ARGV: 1 "due" to check that their time has come, or "pending", 2 priority, 3 wake channel, 4 wake message, 5.. ids
-- Returns how many were moved.
-- May run twice: the second run finds them gone from the set.
local now, moved = now_ms(), 0
for i = 5, #ARGV do
  local id, record = ARGV[i], KEYS[i - 1]
  local score = redis.call('ZSCORE', KEYS[1], id)
  if score and (ARGV[1] == 'pending' or tonumber(score) <= now) then
    local fields = entry_fields(id, redis.call('HGETALL', record))
    if fields then
      local entry
      -- The first sees to it that there is a stream
      if moved == 0 then
        entry = put(KEYS[3], KEYS[2], ARGV[2], ARGV[3], ARGV[4], fields)
      else
        entry = redis.call('XADD', KEYS[3], '*', unpack(fields))
      end
      note_entry(record, ARGV[2], entry)
      moved = moved + 1
    end
    redis.call('ZREM', KEYS[1], id)
  end
end
return moved
