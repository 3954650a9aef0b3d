#!lua flags=allow-oom
-- Stores or removes a subscription, if the old one is stored as the caller read it.
-- KEYS: 1 subscriptions
-- ARGV: 1 name, 2 subscription as the caller read it or "" for none, 3 new subscription or "" to remove it,
--       4 max subscriptions, 5 notification channel, 6 notification
-- Returns "saved", "already_saved" when the new one is stored already, "changed" when another one is stored, or "full"
-- when there is no room for another subscription.
-- The field "" marks a list that was created: a list that vanished without it was lost.
-- May run twice: the second run finds the new subscription.
local subscriptions = KEYS[1]
local name, known_subscription, new_subscription = ARGV[1], ARGV[2], ARGV[3]
local max_subscriptions, notifications, notification = tonumber(ARGV[4]), ARGV[5], ARGV[6]

-- The field "" counts too
local max_fields = max_subscriptions + 1
local refusal = compare_and_set(subscriptions, name, known_subscription, new_subscription, max_fields)
if refusal then return refusal end
redis.call('HSET', subscriptions, '', '1')
if new_subscription == '' then
  redis.call('HDEL', subscriptions, name)
else
  redis.call('HSET', subscriptions, name, new_subscription)
end
redis.pcall('PUBLISH', notifications, notification)
return 'saved'
