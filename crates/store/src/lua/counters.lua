-- For scripts that count for a subscription.

-- Counters expire 90 days after their last change, so nothing stays of a subscription that was removed.
local function extend_counters_ttl(counters)
  redis.call('PEXPIRE', counters, 7776000000)
end
