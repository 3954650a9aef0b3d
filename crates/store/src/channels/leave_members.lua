#!lua flags=allow-oom
-- Notes that members are no longer at a gateway, and tells everyone who watches the channel of those that leave.
-- KEYS: 1 members
-- ARGV: 1 gateway, 2 pub/sub channel of events, 3.. members
-- Returns 1.
-- May run twice: the second run finds nobody.
local members = KEYS[1]
local gateway, topic = ARGV[1], ARGV[2]
local first_member = 3

for i = first_member, #ARGV do release_member(members, topic, gateway, ARGV[i]) end
return 1
