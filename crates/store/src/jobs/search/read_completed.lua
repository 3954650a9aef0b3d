#!lua flags=no-writes,allow-oom
-- Reads the newest completed jobs of a queue, or those that follow in the list.
-- KEYS: 1 index of completed jobs
-- ARGV: 1 where to begin: "", "until <ms>" at the newest that completed by that time, or "number <n>" at the entry with that
--       number, 2 about how many jobs to read
-- Returns entries, newest first: {number, when in ms, ids in base64, separated by spaces}.
-- May run twice: it only reads.
local index = KEYS[1]
local place, wanted = ARGV[1], tonumber(ARGV[2])

local function number_of(entry) return tonumber(string.match(entry[1], '^%d+')) end

-- The number behind the last entry of a time: times only grow with the numbers.
local function behind_time(at)
  local first = redis.call('XRANGE', index, '-', '+', 'COUNT', 1)[1]
  local last = redis.call('XREVRANGE', index, '+', '-', 'COUNT', 1)[1]
  if not first then return 0 end
  local low, high = number_of(first), number_of(last) + 1
  while low < high do
    local middle = math.floor((low + high) / 2)
    local entry = redis.call('XRANGE', index, string.format('%.0f', middle), '+', 'COUNT', 1)[1]
    if not entry or tonumber(entry[2][1]) > at then high = middle else low = number_of(entry) + 1 end
  end
  return low
end

local newest = '+'
local at, number = string.match(place, '^until (%-?%d+)$'), string.match(place, '^number (%d+)$')
if at then newest = '(' .. string.format('%.0f', behind_time(tonumber(at))) end
if number then newest = number end
local found, count = {}, 0
while count < wanted do
  local page = redis.call('XREVRANGE', index, newest, '-', 'COUNT', 10)
  for _, entry in ipairs(page) do
    found[#found + 1] = { string.format('%.0f', number_of(entry)), entry[2][1], entry[2][2] }
    count = count + math.ceil((#entry[2][2] + 1) / 23)
    newest = '(' .. entry[1]
    if count >= wanted then break end
  end
  if #page < 10 then break end
end
return found
