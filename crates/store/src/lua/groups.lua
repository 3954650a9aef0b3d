-- What Redis says of each group of a history: its fields.
local function groups_of(history)
  local found = {}
  for _, info in ipairs(redis.call('XINFO', 'GROUPS', history)) do
    local fields = {}
    for i = 1, #info, 2 do fields[info[i]] = info[i + 1] end
    found[#found + 1] = fields
  end
  return found
end
