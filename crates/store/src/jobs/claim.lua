#!lua flags=allow-oom
-- Claims waiting jobs for a consumer: the highest priority first, in order of arrival within a priority. If priorities
-- age, a job counts as if it had arrived earlier by its priority times the aging, and the earliest comes first.
-- KEYS: 1 priorities, 2 active, 3 leases, 4 control, 5 starts of a strict rate, 6.. streams, highest priority first
-- ARGV: 1 consumer, 2 max jobs, 3 "pull" or "worker", 4 lease in ms that the fetch asked for or 0, 5 default lease in ms,
--       6 worker id or "", 7 notification channel, 8 notification, 9 max jobs of the queue that run at once or -1,
--       10 max starts or 0 in each period of 11 ms, 12 max starts at once, 13 1 for a strict rate, else 0, 14 aging of priorities in ms or 0
--       (9 to 14 are settings; the fields of control override them), 15 longest attempt in ms of a job that sets none, and after a
--       space that of any job, if the settings have one, 16 bytes after
--       which the answer gets no more jobs, 17 max jobs in one read, 18 when a lease starts by the caller's knowledge
--       of the clock, 19.. the priority of each stream, then for "pull" a token for each job
-- Returns {0} when the caller's list of streams is outdated, else {1, start of the attempts in ms, jobs, next claim, 1
-- when the bytes left no room for more jobs, else 0, number of partitions if the queue has several}: each job is {number of its stream, entry, fields, token}; next
-- claim is the ms to wait when a limit allowed no job, -1 when the queue is paused, -2 when it has limits that allow
-- more jobs, 0 when it has none.
-- May run twice: each run claims other jobs. Jobs of a lost answer stay claimed: a queue-worker asks for its own again,
-- pulled jobs are released by their tokens.
local priorities, active, leases, control, starts = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local first_stream = 6
local consumer, wanted, is_pull = ARGV[1], tonumber(ARGV[2]), ARGV[3] == 'pull'
local requested_lease_ms, default_lease_ms = tonumber(ARGV[4]), tonumber(ARGV[5])
local worker_id, notifications, notification = ARGV[6], ARGV[7], ARGV[8]
local default_concurrency, default_rate, default_period_ms = ARGV[9], ARGV[10], ARGV[11]
local default_burst, default_strict, default_aging_ms = ARGV[12], ARGV[13], ARGV[14]
local default_timeout, max_timeout = string.match(ARGV[15], '^(%d+) ?(%d*)$')
local default_timeout_ms, max_timeout_ms = tonumber(default_timeout), tonumber(max_timeout)
local max_bytes, max_read = tonumber(ARGV[16]), tonumber(ARGV[17])
local expected_start = ARGV[18]
local first_priority = 19

local stream_count = #KEYS - first_stream + 1
local first_token = first_priority + stream_count
if redis.call('SCARD', priorities) ~= stream_count then return { 0 } end
local now, start = now_ms(), lease_start(expected_start)
local jobs, earliest_expiry, next_claim = {}, nil, 0

local limits = redis.call('HMGET', control, 'paused', 'c', 'rl', 'rp', 'r', 'ra', 'rb', 'rs', 'n', 'pa')
if limits[1] then return { 1, start, {}, -1, 0 } end
local concurrency = tonumber(limits[2] or default_concurrency)
local rate, period_ms = tonumber(limits[3] or default_rate), tonumber(limits[4] or default_period_ms)
local burst, is_strict = tonumber(limits[7] or default_burst), (limits[8] or default_strict) == '1'
local tokens, tokens_at = tonumber(limits[5] or ''), tonumber(limits[6] or '')
local partitions = tonumber(limits[9] or '')
local aging_ms = tonumber(limits[10] or default_aging_ms)
if partitions then
  -- A partition has its share of the limits: the shares add up to them
  local partition = tonumber(string.match(control, '~(%d+)~') or '0')
  local function share(limit)
    if limit <= 0 then return limit end
    return math.max(1, math.floor(limit / partitions) + (partition < limit % partitions and 1 or 0))
  end
  concurrency, rate, burst = share(concurrency), share(rate), share(burst)
end
if concurrency >= 0 then
  next_claim = -2
  local free = concurrency
  for number = 1, stream_count do
    local pending = redis.pcall('XPENDING', KEYS[first_stream + number - 1], 'workers')
    if not pending.err then free = free - pending[1] end
  end
  if free < wanted then
    wanted = math.max(0, free)
    -- Any process may end the job that makes room: claim again soon
    if wanted == 0 then next_claim = 200 end
  end
end
if rate > 0 then
  local free, wait_ms
  tokens, wait_ms = fill_bucket(tokens, tokens_at, burst, rate, period_ms, now)
  free = math.floor(tokens)
  if is_strict and free > 0 then
    local in_window, window_ms = free_in_window(starts, rate, period_ms, now)
    if in_window < free then free, wait_ms = in_window, window_ms end
  end
  if next_claim == 0 then next_claim = -2 end
  if free < wanted then
    wanted = math.max(0, free)
    if wanted == 0 then next_claim = math.max(1, wait_ms) end
  end
end

local function field(fields, name)
  for i = 1, #fields, 2 do
    if fields[i] == name then return fields[i + 1] end
  end
end

-- Records the lease of a claimed entry where it needs one; its token, "-" for a worker's own lease, "" for none.
local function start_lease(number, entry, fields)
  local own_lease, token = field(fields, 'v'), '-'
  if not is_pull and not own_lease then return '' end
  -- Nothing may fail from here on: the entries are claimed already
  local lease_ms = tonumber(own_lease or '') or default_lease_ms
  local deadline = 0
  if is_pull then
    if requested_lease_ms > 0 then lease_ms = requested_lease_ms end
    token = ARGV[first_token + #jobs]
    -- A client that asks for a longer lease means it
    local timeout_ms = tonumber(field(fields, 't') or '') or math.max(default_timeout_ms, lease_ms)
    if max_timeout_ms then timeout_ms = math.min(timeout_ms, max_timeout_ms) end
    deadline = start + timeout_ms
  end
  local attempt_name = ARGV[first_priority + number - 1] .. ':' .. entry
  local expiry = start + lease_ms
  if deadline > 0 and deadline < expiry then expiry = deadline end
  local attempt = string.format('%s %d %d %d %s', token, start, lease_ms, deadline, worker_id)
  redis.call('HSET', active, attempt_name, attempt)
  redis.call('ZADD', leases, expiry, attempt_name)
  if not earliest_expiry or expiry < earliest_expiry then earliest_expiry = expiry end
  return token
end

-- How many jobs to read next, so that the answer stays near its bytes: a job may be as large as a request body.
local bytes, largest = 0, 0
local function next_count()
  if largest == 0 then return 1 end
  return math.max(1, math.min(wanted, max_read, #jobs, math.floor((max_bytes - bytes) / largest)))
end

local function read_stream(stream, priority, count)
  local reply = redis.pcall('XREADGROUP', 'GROUP', 'workers', consumer, 'COUNT', count, 'STREAMS', stream, '>')
  if not (reply and reply.err) then return reply end
  if not string.find(reply.err, 'NOGROUP', 1, true) then return reply end
  -- The stream or its group was deleted: create it, and everything in the stream waits
  redis.call('XGROUP', 'CREATE', stream, 'workers', '0', 'MKSTREAM')
  redis.call('SADD', priorities, priority)
  return redis.call('XREADGROUP', 'GROUP', 'workers', consumer, 'COUNT', count, 'STREAMS', stream, '>')
end

-- Claims up to that many jobs of a stream: how many it had, and an error.
local function claim_from(number, count)
  local reply = read_stream(KEYS[first_stream + number - 1], ARGV[first_priority + number - 1], count)
  if reply and reply.err then return 0, redis.error_reply(reply.err) end
  local entries = reply and reply[1][2] or {}
  for _, item in ipairs(entries) do
    local entry, fields = item[1], item[2]
    local token = start_lease(number, entry, fields)
    jobs[#jobs + 1] = { number, entry, fields, token }
    wanted = wanted - 1
    local size = 0
    for i = 1, #fields do size = size + #fields[i] end
    -- Results that the caller reads from the workflow
    size = size + (tonumber(string.match(field(fields, 'r') or '', '^=(%d+)$')) or 0)
    bytes, largest = bytes + size, math.max(largest, size)
  end
  return #entries
end

-- Whether a stream may have jobs. That one is empty costs half as much to ask as to find out by reading it; for few streams
-- it is not worth a question.
local few_streams = 8
local function may_have_jobs(number)
  if stream_count <= few_streams then return true end
  local length = redis.pcall('XLEN', KEYS[first_stream + number - 1])
  return type(length) == 'table' or length > 0
end

-- When the first job after that one counts as arrived; none if there is none.
local function aged_arrival(number, after)
  local head = redis.pcall('XRANGE', KEYS[first_stream + number - 1], '(' .. after, '+', 'COUNT', 1)
  if head.err or not head[1] then return nil end
  local arrived_ms = tonumber(string.match(head[1][1], '^%d+'))
  return arrived_ms - tonumber(ARGV[first_priority + number - 1]) * aging_ms
end

local function claim_by_age()
  local arrivals, waiting = {}, 0
  local function note(number, after)
    arrivals[number] = aged_arrival(number, after)
    if arrivals[number] then waiting = waiting + 1 end
  end
  for number = 1, stream_count do
    if may_have_jobs(number) then note(number, last_delivered(KEYS[first_stream + number - 1])) end
  end
  while waiting > 0 and wanted > 0 and bytes < max_bytes do
    local first
    for number = 1, stream_count do
      if arrivals[number] and (not first or arrivals[number] < arrivals[first]) then first = number end
    end
    -- The last stream with jobs has nothing to compare with
    local count = waiting > 1 and 1 or next_count()
    local found, refused = claim_from(first, count)
    if refused then return refused end
    waiting = waiting - 1
    if found == count then note(first, jobs[#jobs][2]) end
  end
end

local function claim_by_priority()
  for number = 1, stream_count do
    while wanted > 0 and bytes < max_bytes and may_have_jobs(number) do
      local count = next_count()
      local found, refused = claim_from(number, count)
      if refused then return refused end
      if found < count then break end
    end
  end
end

local refused
if aging_ms > 0 and stream_count > 1 then refused = claim_by_age() else refused = claim_by_priority() end
if refused then return refused end
if rate > 0 and (#jobs > 0 or tokens_at and tokens_at > now) then
  redis.call('HSET', control, 'r', string.format('%.6f', tokens - #jobs), 'ra', now)
end
if rate > 0 and is_strict then
  for _, job in ipairs(jobs) do redis.call('ZADD', starts, now, job[1] .. ':' .. job[2]) end
  redis.call('PEXPIRE', starts, period_ms)
end
if earliest_expiry then
  local first = redis.call('ZRANGE', leases, 0, 0, 'WITHSCORES')
  if tonumber(first[2]) >= earliest_expiry then redis.pcall('PUBLISH', notifications, notification) end
end
return { 1, start, jobs, next_claim, bytes >= max_bytes and 1 or 0, partitions }
