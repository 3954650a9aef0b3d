#!lua flags=allow-oom
-- Takes or keeps the maintainer's office.
-- KEYS: 1 office
-- ARGV: 1 who, 2 term in ms
-- Returns 1 when the office is held now, else 0.
-- May run twice: the term is set, not added to.
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
