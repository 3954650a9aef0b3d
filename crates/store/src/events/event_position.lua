#!lua flags=no-writes
-- Tells whether the stream of events still keeps an entry. A reader that continues after an entry which is gone has
-- missed events.
-- KEYS: 1 events
-- ARGV: 1 entry
-- Returns {1 if the entry is kept else 0, the first entry or '', the last entry or ''}.
-- May run twice: it only reads.
local events = KEYS[1]
local entry = ARGV[1]

local function id_of(reply) return reply[1] and reply[1][1] or '' end
local kept = #redis.call('XRANGE', events, entry, entry)
local first = redis.call('XRANGE', events, '-', '+', 'COUNT', 1)
local last = redis.call('XREVRANGE', events, '+', '-', 'COUNT', 1)
return { kept, id_of(first), id_of(last) }
