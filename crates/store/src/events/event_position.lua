#!lua flags=no-writes
-- Whether the stream of events keeps an entry. A client that resumes after one that is no longer kept has missed events.
-- KEYS: 1 events
-- ARGV: 1 entry
-- Returns {1 if it is kept else 0, the oldest entry or '', the newest entry or ''}.
-- May run twice: it only reads.
local function id(reply) return reply[1] and reply[1][1] or '' end
local kept = #redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1])
local first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
return { kept, id(first), id(last) }
