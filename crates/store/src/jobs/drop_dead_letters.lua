#!lua flags=allow-oom
-- Drops dead letters: takes them off the list together with what is stored of them.
-- KEYS: 1 dead letters, 2 discarded, 3.. the result of each, then the log of each, then the checkpoint
--       of each, then the signals of each
-- ARGV: the id of each
-- Returns how many were dropped. One that was redriven meanwhile stays.
-- May run twice: the second run finds none.
local dead_letters, discarded = KEYS[1], KEYS[2]
local first_result = 3
local first_id = 1

local dropped = 0
for i = first_id, #ARGV do
  if redis.call('ZREM', dead_letters, ARGV[i]) == 1 then
    redis.call('ZREM', discarded, ARGV[i])
    local key = first_result + i - first_id
    redis.call('DEL', KEYS[key], KEYS[key + #ARGV], KEYS[key + 2 * #ARGV], KEYS[key + 3 * #ARGV])
    dropped = dropped + 1
  end
end
return dropped
