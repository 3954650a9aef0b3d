#!lua flags=no-writes,allow-oom
-- Reads jobs that a consumer has, from a list of entries, until they have some bytes.
-- KEYS: 1 stream
-- ARGV: 1 consumer, 2 bytes after which the answer gets no more jobs, 3.. entries
-- Returns how many entries of the list it looked at, and {entry, fields} of each that the consumer still has.
-- May run twice: it only reads.
local stream = KEYS[1]
local consumer, max_bytes = ARGV[1], tonumber(ARGV[2])
local first_entry = 3

local jobs, bytes, looked_at = {}, 0, 0
for i = first_entry, #ARGV do
  if bytes >= max_bytes then break end
  local entry = ARGV[i]
  looked_at = looked_at + 1
  local pending = redis.pcall('XPENDING', stream, 'workers', entry, entry, 1, consumer)
  local found = not pending.err and #pending == 1 and redis.call('XRANGE', stream, entry, entry)[1]
  if found then
    jobs[#jobs + 1] = found
    for _, value in ipairs(found[2]) do bytes = bytes + #value end
  end
end
return { looked_at, jobs }
