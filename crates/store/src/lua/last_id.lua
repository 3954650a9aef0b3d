-- Put in front of scripts that need the newest position that a history ever had: it outlives the message.

local function newest_ever(history)
  local info = redis.call('XINFO', 'STREAM', history)
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then return info[i + 1] end
  end
end
