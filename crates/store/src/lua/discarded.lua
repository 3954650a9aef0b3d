-- Lists a job among the newest discarded ones of its queue: at most `max`, by the time of their end. The list goes `ttl_ms`
-- after the last one.
local function list_discarded(discarded, id, max, ttl_ms)
  redis.call('ZADD', discarded, now_ms(), id)
  redis.call('ZREMRANGEBYRANK', discarded, 0, -(max + 1))
  redis.call('PEXPIRE', discarded, ttl_ms)
end
