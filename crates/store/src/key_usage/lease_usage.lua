#!lua flags=allow-oom
-- Leases a part of what a key may use: a token bucket that refills by the second and holds as much as a second brings. What
-- is needed now is given as a whole once there is a token, so the bucket may be in debt afterwards: a large body is
-- accepted, and later ones wait until the bucket has refilled.
-- KEYS: 1 bucket
-- ARGV: 1 rate per second, 2 needed now, 3 what else the gateway would like to have for later requests
-- Returns {leased, 0}, or {0, ms until there is a token}.
-- May run twice: then less is left for the others, for a second.
local bucket = KEYS[1]
local rate, needed, wanted = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])

local PERIOD_MS = 1000
local now = now_ms()
local known = redis.call('HMGET', bucket, 't', 'a')
local tokens, wait_ms = fill_bucket(tonumber(known[1] or ''), tonumber(known[2] or ''), rate, rate, PERIOD_MS, now)
if tokens < 1 then return { 0, wait_ms } end

local leased = math.max(needed, math.min(needed + wanted, math.floor(tokens)))
tokens = tokens - leased
redis.call('HSET', bucket, 't', string.format('%.3f', tokens), 'a', string.format('%.0f', now))
redis.call('PEXPIRE', bucket, PERIOD_MS + math.ceil(math.max(0, -tokens) * PERIOD_MS / rate) + PERIOD_MS)
return { leased, 0 }
