-- Replaces fields of a history, if nobody changed them meanwhile.
-- KEYS: 1 history
-- ARGV: for each field its name, its expected value ("" when there is none), its new value ("" to remove it)
-- Returns 1, or 0 when a field has another value.
-- May run twice: the second run finds other values.
local history = KEYS[1]
local first_field = 1

for i = first_field, #ARGV, 3 do
  if (redis.call('HGET', history, ARGV[i]) or '') ~= ARGV[i + 1] then return 0 end
end
for i = first_field, #ARGV, 3 do
  if ARGV[i + 2] == '' then
    redis.call('HDEL', history, ARGV[i])
  else
    redis.call('HSET', history, ARGV[i], ARGV[i + 2])
  end
end
return 1
