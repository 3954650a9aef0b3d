-- Lists a job among the newest ones of its queue that ended the same way: discarded or cancelled. At most `max`, by the time of
-- their end. The list goes `ttl_ms` after the last one.
local function list_ended(ended_jobs, id, max, ttl_ms)
  redis.call('ZADD', ended_jobs, now_ms(), id)
  redis.call('ZREMRANGEBYRANK', ended_jobs, 0, -(max + 1))
  redis.call('PEXPIRE', ended_jobs, ttl_ms)
end
