-- Lists the jobs of a call among the newest completed ones of their queue: one entry for all, whatever their number. `ids` may
-- hold others, which readers recognise. The id of an entry is the number of jobs that completed until then, so the newest
-- `max` are kept by their number. The list ends `ttl_ms` after the last one, as the results do.
local function index_completed(index, total, max, now, ids, ttl_ms)
  local number, oldest = string.format('%.0f', total), string.format('%.0f', math.max(0, total - max))
  local at = string.format('%.0f', now)
  -- The number only grows, unless somebody lost the counter
  local added = redis.pcall('XADD', index, 'MINID', '~', oldest, number, at, ids)
  if added.err then
    redis.call('DEL', index)
    redis.call('XADD', index, number, at, ids)
  end
  redis.call('PEXPIRE', index, ttl_ms)
end
