-- Adds chunks to the output of a job that runs, and tells its readers. Chunks of a pulled job are a sign of life: its lease is
-- renewed, but not past its deadline.
-- KEYS: 1 stream, 2 active, 3 leases, 4 output
-- ARGV: 1 entry, 2 attempt name, 3 to 5 fence: kind, owner, detail (see fence.lua), 6 id, 7 number of the attempt, 8 number of
--       the first chunk in the attempt, from 1, or 0 for the next one, 9 most chunks, 10 most bytes, 11 TTL in ms, 12 channel
--       of the readers, 13 notification channel, 14 notification (due), 15 when a lease starts by the caller's knowledge of
--       the clock, 16.. chunks
-- Returns how many chunks the attempt has now, or -1 when it is not the current one.
-- May run twice: chunks with a number are added once.
local stream, active, leases, output = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local entry, attempt_name, fence_kind, fence_owner, fence_detail = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local id, attempt_number, first = ARGV[6], ARGV[7], tonumber(ARGV[8])
local max_chunks, max_bytes, ttl_ms = tonumber(ARGV[9]), tonumber(ARGV[10]), ARGV[11]
local readers, notifications, due_notification, expected_start = ARGV[12], ARGV[13], ARGV[14], ARGV[15]
local first_chunk = 16

if not is_current_attempt(stream, active, leases, entry, attempt_name, fence_kind, fence_owner, fence_detail) then
  return -1
end
-- An entry has `d` the chunk, `a` its attempt, `n` its number in it, `b` the bytes of the output until then
local attempt = attempt_number .. ' ' .. attempt_name
local epoch, sequence, bytes, number = now_ms(), 0, 0, 0
local newest = redis.call('XREVRANGE', output, '+', '-', 'COUNT', 1)[1]
if newest then
  local fields = newest[2]
  epoch, sequence = string.match(newest[1], '^(%d+)-(%d+)$')
  sequence, bytes = tonumber(sequence), tonumber(fields[8])
  if fields[4] == attempt then number = tonumber(fields[6]) end
end
if first == 0 then first = number + 1 end
for i = first_chunk, #ARGV do
  local chunk_number = first + i - first_chunk
  if chunk_number > number then
    sequence, bytes, number = sequence + 1, bytes + #ARGV[i], chunk_number
    local place = string.format('%.0f-%d', epoch, sequence)
    redis.call('XADD', output, 'MAXLEN', max_chunks, place, 'd', ARGV[i], 'a', attempt, 'n', number, 'b', bytes)
  end
end
-- The oldest go until the rest fits; the newest stays
local after, count = '-', 1
repeat
  local page = redis.call('XRANGE', output, after, '+', 'COUNT', count)
  local kept
  for _, item in ipairs(page) do
    kept = kept or (bytes - tonumber(item[2][8]) + #item[2][2] <= max_bytes and item[1])
  end
  if kept and (after ~= '-' or kept ~= page[1][1]) then redis.call('XTRIM', output, 'MINID', kept) end
  after, count = #page > 0 and '(' .. page[#page][1], 8
until kept or not after
redis.call('PEXPIRE', output, ttl_ms)
publish_topic(readers, id)
if fence_kind == 'pull' then
  renew_lease(active, leases, attempt_name, expected_start, notifications, due_notification)
end
return number
