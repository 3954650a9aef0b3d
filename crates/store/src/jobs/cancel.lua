#!lua flags=allow-oom
-- Ends a job that has not finished, wherever it waits or runs: cancelled, or discarded because its deadline has passed.
-- KEYS: 1 stream, 2 active, 3 leases, 4 record, 5 result, 6 due, 7 pending, 8 timers, 9 key queue, 10 admitted, 11 stats,
--       12 discarded or cancelled: the list of those that ended the same way, 13 log, 14 checkpoint, 15 signals
-- ARGV: 1 where the caller saw the job: "entry" or "record", 2 entry or "", 3 attempt name or "", 4 consumer that had the
--       entry or "", 5 state of the record or "", 6 id, 7 final state, 8 result as text, 9 TTL of the result in ms or 0,
--       10 "1" when the job has a follow-up, 11 notification channel, 12 notification, 13 channel of finished jobs,
--       14 notification (due), 15 most ids in the list, 16 its TTL in ms, 17 TTL in ms of 8 if 9 is 0: a note that stands
--       for the result, or 0 for none
-- Returns "done", or "changed" when the job is no longer where the caller saw it: the caller locates it again.
-- May run twice: the second run returns "changed", and the caller then finds the result.
local stream, active, leases, record = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local result, due, pending, timers = KEYS[5], KEYS[6], KEYS[7], KEYS[8]
local key_queue, admitted, stats, list = KEYS[9], KEYS[10], KEYS[11], KEYS[12]
local log, checkpoint, signals = KEYS[13], KEYS[14], KEYS[15]
local seen = { kind = ARGV[1], entry = ARGV[2], attempt_name = ARGV[3], consumer = ARGV[4], state = ARGV[5] }
local id, final_state, result_text, result_ttl_ms, has_follow_up = ARGV[6], ARGV[7], ARGV[8], ARGV[9], ARGV[10]
local notifications, notification, finished = ARGV[11], ARGV[12], ARGV[13]
local leader = { notifications = ARGV[11], notification = ARGV[14] }
local max_listed, list_ttl_ms, note_ttl_ms = tonumber(ARGV[15]), ARGV[16], ARGV[17]

if not is_where_seen(stream, record, seen) then return 'changed' end
take_away(stream, active, leases, due, pending, key_queue, stats, id, seen)
local kept_ms = result_ttl_ms ~= '0' and result_ttl_ms or note_ttl_ms
store_end(record, result, timers, admitted, stats, id, final_state, result_text, kept_ms, has_follow_up, leader)
redis.call('PEXPIRE', log, result_ttl_ms)
redis.call('PEXPIRE', checkpoint, result_ttl_ms)
redis.call('PEXPIRE', signals, result_ttl_ms)
if result_ttl_ms ~= '0' then list_ended(list, id, max_listed, list_ttl_ms) end
redis.pcall('PUBLISH', notifications, notification)
publish_topic(finished, id)
return 'done'
