-- For scripts that make a queue's streams ready for claims.

-- Creates what is missing of the stream of a priority, its consumer group and its place on the list. Returns whether the
-- priority is new, or nil and an error when the key has another type.
local function open_stream(priorities, stream, priority)
  local created = redis.pcall('XGROUP', 'CREATE', stream, 'workers', '0', 'MKSTREAM')
  if created.err and not string.find(created.err, 'BUSYGROUP', 1, true) then
    return nil, redis.error_reply(created.err)
  end
  return redis.call('SADD', priorities, priority) == 1
end
