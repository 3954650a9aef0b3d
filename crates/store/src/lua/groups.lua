-- What XINFO says of each consumer group of a history, as a table of fields.
local function groups_of(history)
  local groups = {}
  for _, info in ipairs(redis.call('XINFO', 'GROUPS', history)) do
    local fields = {}
    for i = 1, #info, 2 do fields[info[i]] = info[i + 1] end
    groups[#groups + 1] = fields
  end
  return groups
end
