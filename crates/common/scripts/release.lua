#!lua flags=allow-oom
-- Forgets that a job stands in the way of others like it, if it still does.
-- KEYS: 1 holder of the uniqueness
-- ARGV: 1 id
-- Returns 1 when it was forgotten, else 0.
-- May run twice: the second run finds another holder, or none.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
