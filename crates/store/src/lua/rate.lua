-- How many starts a rate allows. A rate is a token bucket: `burst` starts at once, then `limit` in each period. A strict
-- rate also never allows more than `limit` in any period, wherever that begins.

-- The tokens of a bucket now, and how many ms until it has a whole one. A time that is still to come is from before
-- Redis's clock was set back: then the bucket fills from now on.
local function fill_bucket(tokens, filled_at, burst, limit, period_ms, now)
  local filled_ms = filled_at and filled_at <= now and now - filled_at or 0
  local filled = math.min(burst, (tokens or burst) + filled_ms * limit / period_ms)
  return filled, math.max(1, math.ceil((1 - filled) * period_ms / limit))
end

-- How many more starts a strict rate allows, and how many ms until it allows one more. `starts` has the starts of the last
-- period by time, and those that are still to come with an infinite time.
local function free_in_window(starts, limit, period_ms, now)
  redis.call('ZREMRANGEBYSCORE', starts, '-inf', string.format('(%.0f', now - period_ms))
  -- Redis's clock was set back
  for _, start in ipairs(redis.call('ZRANGEBYSCORE', starts, string.format('(%.0f', now), '(inf')) do
    redis.call('ZADD', starts, now, start)
  end
  local first = redis.call('ZRANGE', starts, 0, 0, 'WITHSCORES')
  local wait_ms = tonumber(first[2] or '') and tonumber(first[2]) + period_ms + 1 - now or 0
  return limit - redis.call('ZCARD', starts), wait_ms
end
