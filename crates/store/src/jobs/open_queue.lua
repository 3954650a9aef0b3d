#!lua flags=allow-oom
-- Makes a queue ready for claims: each stream that exists or is listed gets its consumer group and is listed. A queue
-- without any gets the stream of the default priority. The list of priorities is not trusted: it may be gone.
-- KEYS: 1 priorities, 2.. the stream of every priority
-- ARGV: 1 notification channel, 2 notification, 3 default priority, 4.. the priority of each stream
-- Returns the listed priorities, and whether one is new (1 or 0).
-- May run twice: the second run finds everything.
local priorities, streams = KEYS[1], { unpack(KEYS, 2) }
local notifications, notification, default_priority = ARGV[1], ARGV[2], ARGV[3]
local all_priorities = { unpack(ARGV, 4) }

local listed, is_listed, is_new = {}, {}, 0
local is_priority = {}
for _, priority in ipairs(all_priorities) do is_priority[priority] = true end
for _, priority in ipairs(redis.call('SMEMBERS', priorities)) do
  if is_priority[priority] then
    is_listed[priority] = true
  else
    -- Not Galley's: claims would take their list of streams for outdated for ever
    redis.call('SREM', priorities, priority)
  end
end

-- Opens a stream and notes its priority; an error if its key has another type.
local function open(stream, priority)
  local is_new_priority, failure = open_stream(priorities, stream, priority)
  if failure then return failure end
  if is_new_priority then is_new = 1 end
  listed[#listed + 1] = priority
end

local default_stream, failure
for number, stream in ipairs(streams) do
  local priority = all_priorities[number]
  if priority == default_priority then default_stream = stream end
  if not failure and (is_listed[priority] or redis.call('EXISTS', stream) == 1) then failure = open(stream, priority) end
end
if #listed == 0 and not failure then failure = open(default_stream, default_priority) end
if failure then return failure end
if is_new == 1 then redis.pcall('PUBLISH', notifications, notification) end
return { listed, is_new }
