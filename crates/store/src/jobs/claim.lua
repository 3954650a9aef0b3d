#!lua flags=allow-oom
-- Hands out waiting jobs, the highest priority first, in order of arrival within a priority.
-- KEYS: 1 priorities, 2 active, 3 leases, 4 control, 5.. streams, highest priority first
-- ARGV: 1 consumer, 2 most jobs, 3 "pull" or "worker", 4 lease ms given by the fetch or 0, 5 default lease ms,
--       6 worker id or "", 7 wake channel, 8 wake message, 9 most jobs of the queue at once or -1, 10 most starts in
--       11 ms or 0 (settings; what control says goes before), 12.. the priority of each stream, then a token per job (pull)
-- Returns {0} when the caller's list of streams is old, else {1, now ms, jobs, look again in}: each job as
-- {stream number, entry, fields, token}; look again in so many ms when a limit cut the claim short, -1 when the queue is
-- paused, -2 when it has limits that allow more, 0 when it has none.
-- A lost answer leaves jobs claimed: a worker asks for its own again, a pulled job waits for its lease.
local streams = #KEYS - 4
if redis.call('SCARD', KEYS[1]) ~= streams then return { 0 } end
local consumer, want, pull = ARGV[1], tonumber(ARGV[2]), ARGV[3] == 'pull'
local now = now_ms()
local jobs, soonest, again = {}, nil, 0

local control = redis.call('HMGET', KEYS[4], 'paused', 'c', 'rl', 'rp', 'r', 'ra')
if control[1] then return { 1, now, {}, -1 } end
local concurrency = tonumber(control[2] or ARGV[9])
local rate, period = tonumber(control[3] or ARGV[10]), tonumber(control[4] or ARGV[11])
local tokens = tonumber(control[5] or rate)
if concurrency >= 0 then
  again = -2
  local room = concurrency
  for stream = 1, streams do
    local pending = redis.pcall('XPENDING', KEYS[4 + stream], 'workers')
    if not pending.err then room = room - pending[1] end
  end
  if room < want then
    want = math.max(0, room)
    -- A place gets free when some job ends, wherever it runs: look again soon
    if want == 0 then again = 200 end
  end
end
if rate > 0 then
  tokens = math.min(rate, tokens + math.max(0, now - tonumber(control[6] or now)) * rate / period)
  if again == 0 then again = -2 end
  if tokens < want then
    want = math.max(0, math.floor(tokens))
    if want == 0 then again = math.max(1, math.ceil((1 - tokens) * period / rate)) end
  end
end

local function field(fields, name)
  for i = 1, #fields, 2 do
    if fields[i] == name then return fields[i + 1] end
  end
end

local function lease(stream, entry, fields)
  local own, token = field(fields, 'v'), '-'
  if not pull and not own then return '' end
  -- Nothing may fail from here on: the entries are handed out already
  local ms = tonumber(own or '') or tonumber(ARGV[5])
  local deadline = 0
  if pull then
    if tonumber(ARGV[4]) > 0 then ms = tonumber(ARGV[4]) end
    token = ARGV[11 + streams + #jobs + 1]
    local timeout = tonumber(field(fields, 't') or '')
    if timeout then deadline = now + timeout end
  end
  local member = ARGV[11 + stream] .. ':' .. entry
  local due = now + ms
  if deadline > 0 and deadline < due then due = deadline end
  redis.call('HSET', KEYS[2], member, string.format('%s %d %d %d %s', token, now, ms, deadline, ARGV[6]))
  redis.call('ZADD', KEYS[3], due, member)
  if not soonest or due < soonest then soonest = due end
  return token
end

for stream = 1, streams do
  if want <= 0 then break end
  local key = KEYS[4 + stream]
  local reply = redis.pcall('XREADGROUP', 'GROUP', 'workers', consumer, 'COUNT', want, 'STREAMS', key, '>')
  if reply and reply.err then
    if not string.find(reply.err, 'NOGROUP', 1, true) then return redis.error_reply(reply.err) end
    -- Somebody removed the stream or its group: everything in it counts as waiting
    redis.call('XGROUP', 'CREATE', key, 'workers', '0', 'MKSTREAM')
    redis.call('SADD', KEYS[1], ARGV[11 + stream])
    reply = redis.call('XREADGROUP', 'GROUP', 'workers', consumer, 'COUNT', want, 'STREAMS', key, '>')
  end
  if reply then
    for _, item in ipairs(reply[1][2]) do
      local token = lease(stream, item[1], item[2])
      jobs[#jobs + 1] = { stream, item[1], item[2], token }
      want = want - 1
    end
  end
end
if soonest then
  local first = redis.call('ZRANGE', KEYS[3], 0, 0, 'WITHSCORES')
  if tonumber(first[2]) >= soonest then redis.call('PUBLISH', ARGV[7], ARGV[8]) end
end
if rate > 0 and #jobs > 0 then
  redis.call('HSET', KEYS[4], 'r', string.format('%.6f', tokens - #jobs), 'ra', now)
end
return { 1, now, jobs, again }
