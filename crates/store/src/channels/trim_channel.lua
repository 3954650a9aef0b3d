#!lua flags=allow-oom
-- Trims a channel's history to what is kept of it, but not beyond what subscriptions still need: what they have out, and what is
-- behind the last that they were given. What they hold back beyond the cap is trimmed all the same, and reported.
-- KEYS: 1 history, 2 state
-- ARGV: 1 messages kept, 2 their age in ms or 0, 3 their bytes or 0, 4 messages that subscriptions may hold back, 5 their bytes,
--       6 messages trimmed at most, 7 bytes trimmed at most, about, 8 TTL in ms
-- Returns {messages trimmed, 1 if there is more to trim, 1 if the channel is to be noted as in use, {subscription, messages
--          that it lost or -1 if that cannot be known, ...}, the subscriptions that have groups}, or nil: no history.
-- One call trims in one epoch, where messages are numbered without gaps: so a number of messages is a position.
-- May run twice: the second one finds nothing to trim, and where the history began is noted in the state, as `f`: what was lost
-- before that has been told.
local history, state_key = KEYS[1], KEYS[2]
local max_messages, max_age_ms, max_bytes = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local backlog_max_messages, backlog_max_bytes, max_trimmed = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local max_trimmed_bytes, ttl_ms = tonumber(ARGV[7]), tonumber(ARGV[8])

local SAMPLES = 100

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

-- The subscriptions, with the first message that each needs of those from `start` on.
local function needed_by_subscriptions(start)
  local found = {}
  for _, group in ipairs(groups_of(history)) do
    local name = string.match(group['name'], '^sub:(.+)$')
    if name then
      local subscription = { name = name, group = group['name'], last_delivered = group['last-delivered-id'] }
      local unread = redis.call('XRANGE', history, '(' .. subscription.last_delivered, '+', 'COUNT', 1)[1]
      local pending = redis.call('XPENDING', history, subscription.group, start, '+', 1)[1]
      local needed = unread and unread[1]
      if pending and not (needed and is_before(needed, pending[1])) then needed = pending[1] end
      subscription.first_needed = needed
      subscriptions[#subscriptions + 1] = subscription
    end
  end
  return subscriptions
end

-- What a subscription lost of the messages from a position up to and without another: those that it had out, and those that it
-- had not been given.
local function lost_by(sub, from, to, most)
  if not is_before(from, to) then return 0 end
  local pending = #redis.call('XPENDING', history, subscription.group, from, '(' .. to, max_pending + 1)
  local unread = count_between(later_of(position_after(subscription.last_delivered), from), to)
  if pending > max_pending or not unread then return -1 end
  return pending + unread
end

-- The position to which the limits would trim in this call, the one to which they do at any rate, whether there may be more to
-- trim behind it, and the most that one call trims.
local function limits(first, now)
  local epoch, low = split(first[1])
  local last = last_of(history, epoch)
  local _, high = split(last[1])
  local all, length = high - low + 1, redis.call('XLEN', history)
  local weight = redis.call('MEMORY', 'USAGE', history, 'SAMPLES', SAMPLES)
  local mean = math.max(1, weight / length)
  local most = math.max(1, math.min(max_trimmed, math.floor(max_trimmed_bytes / mean)))
  local function over(limit)
    return limit == 0 and 0 or math.min(length - 1, math.floor(math.max(0, weight - limit) / mean))
  end
  local heavy = over(max_bytes)
  local own = math.max(0, length - max_messages, heavy)
  local oldest = now - max_age_ms
  if max_age_ms ~= 0 and published_at(last) < oldest then
    -- What is behind this epoch is looked at in the next call
    own = math.max(all, length)
  elseif max_age_ms ~= 0 and published_at(first) < oldest then
    own = math.max(own, first_at(history, epoch, low, high, oldest) - low)
  end
  local forced = math.min(own, math.max(0, length - backlog_max_messages, over(backlog_max_bytes)))
  local reach = math.min(all, most)
  local function position(count)
    return join(epoch, low + math.min(count, reach))
  end
  -- The number of bytes of a message is an estimate, which gets better with each call
  return position_of(wanted), position_of(forced), wanted > reach or too_heavy > 0, max_count
end

if redis.call('EXISTS', history) == 0 then return false end
local first = redis.call('XRANGE', history, '-', '+', 'COUNT', 1)[1]
local start = first and first[1] or next_to(last_id(history))
local subs = needed_by_subscriptions(start)
local cut, is_more, most, trimmed = start, false, max_trimmed, 0
if first then
  local own, forced, goes_on, at_once = limits(first, now_ms())
  cut, most = own, at_once
  for _, sub in ipairs(subs) do
    if sub.needed and is_before(sub.needed, cut) then cut = sub.needed end
  end
  cut = later(cut, forced)
  if is_before(start, cut) then trimmed = redis.call('XTRIM', history, 'MINID', '=', cut) end
  is_more = trimmed > 0 and (goes_on or is_before(cut, own))
end

local state = redis.call('HMGET', state_key, 's', 'f')
local told, names, is_needed = {}, {}, false
for _, sub in ipairs(subs) do
  local from, is_open = start, false
  if state[2] then
    from, is_open = string.gsub(state[2], '^>', '')
    -- It was empty, so nothing of an epoch that began since has been told
    if is_open == 1 and split(from) ~= split(start) then from = split(start) .. '-0' end
  elseif split(sub.last) == split(start) and is_before(next_to(sub.last), start) then
    from = next_to(sub.last)
  end
  local lost = lost_by(sub, from, cut, most)
  if lost ~= 0 then
    losses[#losses + 1] = subscription.name
    losses[#losses + 1] = lost
  end
  names[#names + 1] = subscription.name
  is_needed = is_needed or subscription.first_needed
end
if #subs > 0 then
  local kept = redis.call('XRANGE', history, '-', '+', 'COUNT', 1)[1]
  local begins = kept and kept[1] or '>' .. next_to(last_id(history))
  if state[1] ~= '1' or state[2] ~= begins then redis.call('HSET', state_key, 's', '1', 'f', begins) end
elseif state[1] or state[2] then
  redis.call('HDEL', state_key, 's', 'f')
end

-- What a subscription still needs does not expire
local is_due = is_needed and redis.call('PTTL', history) < ttl_ms / 2
if is_due then
  redis.call('PEXPIRE', history, ttl_ms)
  redis.call('PEXPIRE', state_key, ttl_ms)
end
return { trimmed, has_more and 1 or 0, is_ttl_due and 1 or 0, losses, names }
