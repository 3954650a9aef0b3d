-- The last position that a history ever gave out. It stays when the message is trimmed.
local function last_id(history)
  local info = redis.call('XINFO', 'STREAM', history)
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then return info[i + 1] end
  end
end
