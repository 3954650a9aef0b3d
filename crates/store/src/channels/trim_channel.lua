#!lua flags=allow-oom
-- Trims a channel's history to its limits, but keeps the messages that subscriptions still need: those that are
-- pending, and those that a group has not read. Subscriptions can hold back a limited number of messages and bytes;
-- beyond that limit the script trims anyway and reports what each subscription lost.
-- KEYS: 1 history, 2 state
-- ARGV: 1 max messages, 2 max age in ms or 0, 3 max bytes or 0, 4 max messages that subscriptions hold back, 5 max
--       bytes that they hold back, or 0, 6 max messages to trim in this call, 7 about how many bytes to trim in this
--       call, 8 TTL in ms, 9 0, or when Redis is nearly full the bytes from which on half of the history goes
-- Returns {number of trimmed messages, 1 if there is more to trim, 1 if the caller must register the channel as in use,
-- {subscription, number of messages that it lost or -1 if nobody can know, ...}, {{subscription that has a group, number of
-- messages that it was not handed, number of those that it has and has not acknowledged, when the oldest of the former
-- was published or nil}, ...}}, or nil when the channel has no history.
-- One call trims in one epoch, where messages are numbered without gaps: a number of messages gives a position.
-- May run twice: the second run finds nothing to trim. Field `f` of the state says where the history started when the
-- last run ended: losses before that position were reported.
local history, state = KEYS[1], KEYS[2]
local max_messages, max_age_ms, max_bytes = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local max_held_messages, max_held_bytes = tonumber(ARGV[4]), tonumber(ARGV[5])
local max_trimmed_messages, max_trimmed_bytes, ttl_ms = tonumber(ARGV[6]), tonumber(ARGV[7]), ARGV[8]
local min_bytes_under_pressure = tonumber(ARGV[9])

local MEMORY_SAMPLES = 100

local function is_before(a, b)
  local a_epoch, a_sequence = split(a)
  local b_epoch, b_sequence = split(b)
  if a_epoch ~= b_epoch then return tonumber(a_epoch) < tonumber(b_epoch) end
  return a_sequence < b_sequence
end

local function later_of(a, b)
  return is_before(a, b) and b or a
end

local function position_after(id)
  local epoch, sequence = split(id)
  return join(epoch, sequence + 1)
end

-- How many messages there are from a position up to another one, without that; nil if they are of two epochs.
local function count_between(from, to)
  if not is_before(from, to) then return 0 end
  local epoch, sequence = split(from)
  local to_epoch, to_sequence = split(to)
  return epoch == to_epoch and to_sequence - sequence or nil
end

-- The subscriptions that have groups, each with the first message from `start` on that it needs.
local function read_subscriptions(start)
  local subscriptions = {}
  for _, group in ipairs(groups_of(history)) do
    local name = string.match(group['name'], '^sub:(.+)$')
    if name then
      local subscription = {
        name = name, group = group['name'], last_delivered = group['last-delivered-id'],
        pending = group['pending'], lag = group['lag'],
      }
      local unread = redis.call('XRANGE', history, '(' .. subscription.last_delivered, '+', 'COUNT', 1)[1]
      local pending = redis.call('XPENDING', history, subscription.group, start, '+', 1)[1]
      local needed = unread and unread[1]
      subscription.oldest_at = unread and published_at(unread)
      if pending and not (needed and is_before(needed, pending[1])) then needed = pending[1] end
      subscription.first_needed = needed
      subscriptions[#subscriptions + 1] = subscription
    end
  end
  return subscriptions
end

-- How many messages a subscription loses when those from a position up to another one, without that, are trimmed: its
-- pending ones and its unread ones. -1 if nobody can know.
local function count_lost(subscription, from, to, max_pending)
  if not is_before(from, to) then return 0 end
  local pending = #redis.call('XPENDING', history, subscription.group, from, '(' .. to, max_pending + 1)
  local unread = count_between(later_of(position_after(subscription.last_delivered), from), to)
  if pending > max_pending or not unread then return -1 end
  return pending + unread
end

-- Where the limits cut the history in this call. Returns the position up to which they trim what nobody needs, the one
-- up to which they trim in any case, whether a later call may find more to trim, and the max messages of this call.
local function find_cuts(first, now)
  local epoch, low = split(first[1])
  local last = last_of(history, epoch)
  local _, high = split(last[1])
  local epoch_length, length = high - low + 1, redis.call('XLEN', history)
  local bytes = redis.call('MEMORY', 'USAGE', history, 'SAMPLES', MEMORY_SAMPLES)
  local mean_bytes = math.max(1, bytes / length)
  local max_count = math.max(1, math.min(max_trimmed_messages, math.floor(max_trimmed_bytes / mean_bytes)))
  local function excess(byte_limit)
    if byte_limit == 0 then return 0 end
    return math.min(length - 1, math.floor(math.max(0, bytes - byte_limit) / mean_bytes))
  end
  local max_bytes, max_held_bytes = max_bytes, max_held_bytes
  if min_bytes_under_pressure > 0 and bytes > min_bytes_under_pressure then
    max_bytes = math.floor(bytes / 2)
    max_held_bytes = max_bytes
  end
  local too_heavy = excess(max_bytes)
  local wanted = math.max(0, length - max_messages, too_heavy)
  local oldest_kept = now - max_age_ms
  if max_age_ms ~= 0 and published_at(last) < oldest_kept then
    -- The next call finds how many messages of the next epoch are too old
    wanted = math.max(epoch_length, length)
  elseif max_age_ms ~= 0 and published_at(first) < oldest_kept then
    wanted = math.max(wanted, first_at(history, epoch, low, high, oldest_kept) - low)
  end
  local forced = math.min(wanted, math.max(0, length - max_held_messages, excess(max_held_bytes)))
  local reach = math.min(epoch_length, max_count)
  local function position_of(count)
    return join(epoch, low + math.min(count, reach))
  end
  -- The number of bytes of a message is an estimate, which gets better with each call
  return position_of(wanted), position_of(forced), wanted > reach or too_heavy > 0, max_count
end

if redis.call('EXISTS', history) == 0 then return false end
local first = redis.call('XRANGE', history, '-', '+', 'COUNT', 1)[1]
local start = first and first[1] or position_after(last_id(history))
local subscriptions = read_subscriptions(start)
local cut, has_more, max_count, trimmed = start, false, max_trimmed_messages, 0
if first then
  local wanted_cut, forced_cut, may_continue, max_in_call = find_cuts(first, now_ms())
  cut, max_count = wanted_cut, max_in_call
  for _, subscription in ipairs(subscriptions) do
    local needed = subscription.first_needed
    if needed and is_before(needed, cut) then cut = needed end
  end
  cut = later_of(cut, forced_cut)
  if is_before(start, cut) then trimmed = redis.call('XTRIM', history, 'MINID', '=', cut) end
  has_more = trimmed > 0 and (may_continue or is_before(cut, wanted_cut))
end

local known = redis.call('HMGET', state, 's', 'f', 'l')
local is_subscribed, known_start = known[1], known[2]
-- Field `l` outlives the history, and shows whether an expiry lost anything
local last = last_id(history)
if known[3] ~= last then
  redis.call('HSET', state, 'l', last)
  if redis.call('PTTL', state) < 0 then redis.call('PEXPIRE', state, 2 * tonumber(ttl_ms)) end
end
local losses, backlogs, is_needed = {}, {}, false
for _, subscription in ipairs(subscriptions) do
  local after_delivered = position_after(subscription.last_delivered)
  local from, was_empty = start, 0
  if known_start then
    from, was_empty = string.gsub(known_start, '^>', '')
    -- The history was empty, so no run has reported losses of an epoch that started since
    if was_empty == 1 and split(from) ~= split(start) then from = split(start) .. '-0' end
  elseif split(subscription.last_delivered) == split(start) and is_before(after_delivered, start) then
    from = after_delivered
  end
  local lost = count_lost(subscription, from, cut, max_count)
  if lost ~= 0 then
    losses[#losses + 1] = subscription.name
    losses[#losses + 1] = lost
  end
  -- Of several epochs nobody knows the number but Redis, which guesses
  local unread = count_between(later_of(after_delivered, cut), position_after(last))
    or subscription.lag or redis.call('XLEN', history)
  backlogs[#backlogs + 1] = { subscription.name, unread, subscription.pending, subscription.oldest_at or false }
  is_needed = is_needed or subscription.first_needed
end
if #subscriptions > 0 then
  local kept = redis.call('XRANGE', history, '-', '+', 'COUNT', 1)[1]
  -- A '>' in front says that the history is empty
  local new_start = kept and kept[1] or '>' .. position_after(last_id(history))
  if is_subscribed ~= '1' or known_start ~= new_start then redis.call('HSET', state, 's', '1', 'f', new_start) end
elseif is_subscribed or known_start then
  redis.call('HDEL', state, 's', 'f')
end

-- What a subscription still needs does not expire
local is_ttl_due = is_needed and redis.call('PTTL', history) < tonumber(ttl_ms) / 2
if is_ttl_due then
  redis.call('PEXPIRE', history, ttl_ms)
  redis.call('PEXPIRE', state, 2 * tonumber(ttl_ms))
end
return { trimmed, has_more and 1 or 0, is_ttl_due and 1 or 0, losses, backlogs }
