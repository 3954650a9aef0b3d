#!lua flags=allow-oom
-- Lists a queue. Operators may pause a queue, and workers wait for one, when Redis is out of memory.
-- KEYS: 1 queues
-- ARGV: 1 tag of the queue, 2 queue
-- Returns 1 when the queue is new, else 0.
-- May run twice: the second run finds the queue.
local queues = KEYS[1]
local tag, queue = ARGV[1], ARGV[2]

return redis.call('ZADD', queues, tag, queue)
