-- Lists the `count` jobs of a call among the newest completed ones of their queue: one entry for all, whatever their number.
-- `ids`, in base64, may hold others, which readers recognise. The id of an entry is the number of jobs that completed until
-- then, so the newest `max` are kept by their number. Redis removes whole pages of a hundred entries only, so it is asked
-- once in a hundred jobs. The list ends `ttl_ms` after the last one, as the results do.
local function index_completed(index, total, count, max, now, ids, ttl_ms)
  -- The number only grows, unless somebody lost the counter
  local added = redis.pcall('XADD', index, total, now, ids)
  if added.err then
    redis.call('DEL', index)
    redis.call('XADD', index, total, now, ids)
  end
  if total % 100 < count then redis.call('XTRIM', index, 'MINID', '~', math.max(0, total - max)) end
  redis.call('PEXPIRE', index, ttl_ms)
end
