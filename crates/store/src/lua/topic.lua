-- Publishes to a topic of the slot of a script's keys. `S` before its name says that it is one of a cluster: then only the
-- nodes of its slot learn of it, and not every node.
local function publish_topic(topic, message)
  if string.byte(topic) == 83 then
    topic = string.sub(topic, 2)
    -- Refused where a user lacks the permission: subscribers listen to both
    if type(redis.pcall('SPUBLISH', topic, message)) ~= 'table' then return end
  end
  redis.pcall('PUBLISH', topic, message)
end
