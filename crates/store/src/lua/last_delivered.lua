-- The last entry of a stream of jobs that workers have claimed; 0-0 if there is none.
local function last_delivered(stream)
  local groups = redis.pcall('XINFO', 'GROUPS', stream)
  for _, group in ipairs(groups.err and {} or groups) do
    local fields = {}
    for i = 1, #group, 2 do fields[group[i]] = group[i + 1] end
    if fields.name == 'workers' then return fields['last-delivered-id'] end
  end
  return '0-0'
end
