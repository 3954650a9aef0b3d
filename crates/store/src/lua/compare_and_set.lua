-- Decides whether a script may store or remove a field of a hash. `known` is what the caller read, `wanted` what it
-- wants there, '' stands for no field. Returns nothing when it may, else why not: 'already_saved' when an earlier run
-- did it, 'changed' when the field holds something else by now, 'full' when the hash has `max` fields and no room for a
-- new one.
local function compare_and_set(hash, field, known, wanted, max)
  local found = redis.call('HGET', hash, field) or ''
  if found ~= known then return found == wanted and 'already_saved' or 'changed' end
  if found == '' and redis.call('HLEN', hash) >= tonumber(max) then return 'full' end
end
