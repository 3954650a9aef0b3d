#!lua flags=allow-oom
-- A worker reports that it is there, and hears what is asked of it.
-- KEYS: 1 its record, 2 workers, 3 its directive
-- ARGV: 1 its id, 2 record, 3 how long that counts in ms, 4 workers on the list beyond which a new one is not put on it,
--       or 0, 5 how long a directive to be quiet is kept beyond the last report in ms
-- Returns the directive, or ''.
-- May run twice: it says the same again.
local now = now_ms()
local gone = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, 100)
if #gone > 0 then redis.call('ZREM', KEYS[2], unpack(gone)) end
local most = tonumber(ARGV[4])
if most == 0 or redis.call('ZSCORE', KEYS[2], ARGV[1]) or redis.call('ZCARD', KEYS[2]) < most then
  redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
  redis.call('ZADD', KEYS[2], now + tonumber(ARGV[3]), ARGV[1])
end
local directive = redis.call('GET', KEYS[3])
-- One to terminate runs out: the next worker of that name must not be ended by it too
if directive and string.sub(directive, 1, 9) ~= 'terminate' then redis.call('PEXPIRE', KEYS[3], ARGV[5]) end
return directive or ''
