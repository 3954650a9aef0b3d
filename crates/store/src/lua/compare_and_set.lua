-- Why a field of a hash is not to be stored, or removed, in place of what somebody read ('' where there is none): 'before' when that
-- was done already, 'changed', or 'full' when there is no room for another. Nothing if it is to be.
local function obstacle(key, field, known, wanted, most)
  local found = redis.call('HGET', key, field) or ''
  if found ~= known then return found == wanted and 'before' or 'changed' end
  if found == '' and redis.call('HLEN', key) >= tonumber(most) then return 'full' end
end
