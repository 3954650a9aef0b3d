#!lua flags=allow-oom
-- Records the results of jobs that a queue-worker ran, many at once.
-- KEYS: 1 stream, 2 active, 3 leases, 4 stats, then the result of each job, then the records of those that have one
-- ARGV: 1 consumer, 2 lowest entry, 3 highest entry, 4 most entries that the consumer can hold in between,
--       5 priority, 6 TTL of a result in ms, 7 channel for those who wait,
--       then per job: entry, result, number of its record among the records or 0
-- Returns for each job 1 recorded, 2 recorded by an earlier run of this call, 0 no longer this worker's.
-- May run twice: the second run finds its own results.
local jobs = (#ARGV - 7) / 3
local held_entries = {}
local pending = redis.pcall('XPENDING', KEYS[1], 'workers', ARGV[2], ARGV[3], ARGV[4], ARGV[1])
if not pending.err then
  for _, item in ipairs(pending) do held_entries[item[1]] = true end
end
local outcome, entries, members, progress, records, ids = {}, {}, {}, {}, {}, {}
for i = 1, jobs do
  local at = 7 + (i - 1) * 3
  local entry, result, record = ARGV[at + 1], ARGV[at + 2], tonumber(ARGV[at + 3])
  local member = ARGV[5] .. ':' .. entry
  -- The count asked for above may have been used up by entries that the caller does not know: then each is asked for
  if not held_entries[entry] and not pending.err then
    local one = redis.call('XPENDING', KEYS[1], 'workers', entry, entry, 1, ARGV[1])
    held_entries[entry] = #one == 1 or nil
  end
  if held_entries[entry] then
    outcome[i] = 1
    held_entries[entry] = nil
    entries[#entries + 1] = entry
    members[#members + 1] = member
    progress[#progress + 1] = 'p:' .. member
    ids[#ids + 1] = string.sub(KEYS[4 + i], -36)
    if record > 0 then records[#records + 1] = KEYS[4 + jobs + record] end
    redis.call('SET', KEYS[4 + i], result, 'PX', ARGV[6])
  elseif redis.call('GETRANGE', KEYS[4 + i], 0, #member) == member .. '\n' then
    outcome[i] = 2
  else
    outcome[i] = 0
  end
end
if #entries > 0 then
  redis.call('XACK', KEYS[1], 'workers', unpack(entries))
  redis.call('XDEL', KEYS[1], unpack(entries))
  redis.call('HDEL', KEYS[2], unpack(members))
  redis.call('HDEL', KEYS[2], unpack(progress))
  redis.call('ZREM', KEYS[3], unpack(members))
  if #records > 0 then redis.call('DEL', unpack(records)) end
  redis.call('HINCRBY', KEYS[4], 'completed', #entries)
  redis.call('PUBLISH', ARGV[7], table.concat(ids, ' '))
end
return outcome
