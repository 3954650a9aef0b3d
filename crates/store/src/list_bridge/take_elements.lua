#!lua
-- Takes elements off a list and keeps them as a batch until their jobs exist. Elements that are in transit come first.
-- KEYS: 1 list, 2 elements in transit, 3 batches
-- ARGV: 1 max elements, 2 bytes of elements at which the script stops, 3 a random text
-- Returns {id of the batch, id of the oldest batch, the time in ms, its elements}, or {} when there is no element.
-- May run twice: each run takes other elements. The batch of a run whose answer is lost is recovered.
local list, in_transit, batches = KEYS[1], KEYS[2], KEYS[3]
local max_elements, max_bytes, random_text = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]

local oldest = redis.call('XRANGE', batches, '-', '+', 'COUNT', 1)[1]
local elements, fields, bytes = {}, { 'r', random_text }, 0
while #elements < max_elements and bytes < max_bytes do
  local element = redis.call('LRANGE', in_transit, 0, 0)[1] or redis.call('LMOVE', list, in_transit, 'LEFT', 'RIGHT')
  if not element then break end
  redis.call('LREM', in_transit, 1, element)
  elements[#elements + 1] = element
  fields[#fields + 1] = 'e'
  fields[#fields + 1] = element
  bytes = bytes + #element
end
if #elements == 0 then return {} end
local batch = redis.call('XADD', batches, '*', unpack(fields))
return { batch, oldest and oldest[1] or batch, string.format('%.0f', now_ms()), elements }
