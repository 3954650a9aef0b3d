#!lua flags=allow-oom
-- Notes which jobs of a workflow were made.
-- KEYS: 1 workflow
-- ARGV: 1 the jobs before this index that must exist do
-- Returns the state of the workflow if it is over, "gone" if there is no such one, else "".
-- May run twice: the number only grows.
if redis.call('EXISTS', KEYS[1]) == 0 then return 'gone' end
if tonumber(ARGV[1]) > tonumber(redis.call('HGET', KEYS[1], 'n') or '0') then redis.call('HSET', KEYS[1], 'n', ARGV[1]) end
return redis.call('HGET', KEYS[1], 's') or ''
