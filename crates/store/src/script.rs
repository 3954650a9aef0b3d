//! The Lua scripts, one change of state each. The header of each file lists purpose, KEYS, ARGV and returns, and says why
//! the script may run twice.
//!
//! Scripts are called by their hash. After SCRIPT FLUSH or a restart Redis does not know the hash: the client sends the
//! text again.

use std::sync::LazyLock;

use redis::{ErrorKind, RedisError, RedisResult, Script, ScriptInvocation, ServerErrorKind, Value};

use crate::Redis;

/// Functions that several scripts share.
const CLOCK: &str = include_str!("lua/clock.lua");
const RATE: &str = include_str!("lua/rate.lua");
const FENCE: &str = include_str!("lua/fence.lua");
const END_JOB: &str = include_str!("lua/end_job.lua");
const ENDED_LIST: &str = include_str!("lua/ended_list.lua");
const COMPLETED_INDEX: &str = include_str!("lua/completed_index.lua");
const DEPTH: &str = include_str!("lua/depth.lua");
const SEEK: &str = include_str!("lua/seek.lua");
const STREAM_OPENING: &str = include_str!("lua/open_stream.lua");
const STREAM_ENTRY: &str = include_str!("lua/stream_entry.lua");
const LAST_ID: &str = include_str!("lua/last_id.lua");
const GROUPS: &str = include_str!("lua/groups.lua");
const LAST_DELIVERED: &str = include_str!("lua/last_delivered.lua");
const JOIN: &str = include_str!("lua/join.lua");
const COMPARE_AND_SET: &str = include_str!("lua/compare_and_set.lua");
const FOLLOWS: &str = include_str!("lua/follows.lua");
const PRESENCE: &str = include_str!("lua/presence.lua");
const TOPIC: &str = include_str!("lua/topic.lua");
const COUNTERS: &str = include_str!("lua/counters.lua");

macro_rules! script {
    ($name:ident, $file:literal $(, with $($shared:ident),+)?) => {
        pub(crate) static $name: LazyLock<Script> = LazyLock::new(|| {
            let script = Script::new(&with_preludes(&[$($($shared),+)?], include_str!($file)));
            crate::command_times::note_script($file, script.get_hash());
            script
        });
    };
}

script!(OPEN_STREAM, "jobs/open_stream.lua", with STREAM_OPENING);
script!(OPEN_QUEUE, "jobs/open_queue.lua", with STREAM_OPENING);
script!(REGISTER_QUEUE, "jobs/register_queue.lua");
script!(SET_CONTROL, "jobs/set_control.lua");
script!(SET_LIMITS, "jobs/set_limits.lua");
script!(SET_PARTITIONS, "jobs/set_partitions.lua", with LAST_ID);
script!(SET_PAUSED, "jobs/set_paused.lua");
script!(SET_DIRECTIVE, "workers/set_directive.lua");
script!(DROP_DEAD_LETTERS, "jobs/drop_dead_letters.lua");
script!(ENQUEUE_BOUNDED, "jobs/enqueue_bounded.lua", with DEPTH);
script!(CREATE, "jobs/create.lua", with CLOCK, TOPIC, FENCE, DEPTH, STREAM_ENTRY, END_JOB, ENDED_LIST);
script!(CREATE_MEMBERS, "jobs/create_members.lua", with STREAM_ENTRY);
script!(PROMOTE, "jobs/promote.lua", with CLOCK, STREAM_ENTRY);
script!(ENQUEUE_FOR_KEY, "rate_limits/enqueue_for_key.lua", with CLOCK, STREAM_ENTRY);
script!(ADMIT, "rate_limits/admit.lua", with CLOCK, LAST_DELIVERED, RATE, STREAM_ENTRY);
script!(CLAIM, "jobs/claim.lua", with CLOCK, FENCE, LAST_DELIVERED, RATE);
script!(READ_CLAIMED, "jobs/read_claimed.lua");
script!(HEARTBEAT, "jobs/heartbeat.lua", with CLOCK, FENCE);
script!(RECORD_PROGRESS, "jobs/record_progress.lua", with CLOCK, FENCE);
script!(WRITE_LOG, "jobs/write_log.lua", with CLOCK, FENCE);
script!(SAVE_JOB_CHECKPOINT, "jobs/save_checkpoint.lua", with CLOCK, FENCE, END_JOB);
script!(WRITE_OUTPUT, "jobs/write_output.lua", with CLOCK, TOPIC, FENCE);
script!(RENEW, "jobs/renew.lua", with CLOCK, FENCE);
script!(ISSUE_CALLBACK_TOKEN, "jobs/issue_callback_token.lua", with CLOCK, FENCE);
script!(COMPLETE_BATCH, "jobs/complete_batch.lua", with CLOCK, TOPIC, COMPLETED_INDEX);
script!(FINISH, "jobs/finish.lua", with CLOCK, TOPIC, FENCE, ENDED_LIST, COMPLETED_INDEX);
script!(RETRY, "jobs/retry.lua", with CLOCK, FENCE);
script!(WAIT, "jobs/wait.lua", with CLOCK, FENCE);
script!(SIGNAL, "jobs/signal.lua", with CLOCK);
script!(RELEASE, "jobs/release.lua", with CLOCK, FENCE, STREAM_ENTRY);
script!(CANCEL, "jobs/cancel.lua", with CLOCK, TOPIC, FENCE, END_JOB, ENDED_LIST);
script!(EDIT, "jobs/edit.lua", with CLOCK, FENCE, END_JOB, STREAM_ENTRY);
script!(DEBOUNCE, "jobs/debounce.lua", with CLOCK, FENCE, END_JOB);
script!(NOTE_END, "jobs/note_end.lua");
script!(REPLACE_RESULT, "jobs/replace_result.lua");
script!(READ_COMPLETED, "jobs/search/read_completed.lua");
script!(RELEASE_UNIQUENESS, "jobs/release_uniqueness.lua");
script!(MOVE_DUE, "connection/move_due.lua", with CLOCK);
script!(LEASE_USAGE, "key_usage/lease_usage.lua", with CLOCK, RATE);
script!(PAUSE_KEY, "rate_limits/pause_key.lua", with CLOCK, FENCE);
script!(REMOVE_STREAM, "jobs/remove_stream.lua", with CLOCK, LAST_ID);
script!(DELETE_QUEUE, "jobs/delete_queue.lua");
script!(DELETE_IF_EQUAL, "connection/delete_if_equal.lua");
script!(BEGIN_REQUEST, "idempotency/begin_request.lua");
script!(FORGET_REQUEST, "idempotency/forget_request.lua");
script!(CHECK_ONE, "maintenance/check_one.lua", with CLOCK, STREAM_ENTRY);
script!(RECOUNT, "maintenance/recount.lua");
script!(LIST_ENTRIES, "maintenance/list_entries.lua");
script!(LOCATE, "jobs/locate.lua");
script!(REDRIVE, "jobs/redrive.lua", with CLOCK, STREAM_ENTRY);
script!(TAKE_ELEMENTS, "list_bridge/take_elements.lua", with CLOCK);
script!(ENQUEUE_BATCH, "list_bridge/enqueue_batch.lua", with CLOCK);
script!(CREATE_WORKFLOW, "workflows/create_workflow.lua");
script!(RESERVE_JOBS, "workflows/reserve_jobs.lua");
script!(NOTE_STARTED, "workflows/note_started.lua");
script!(RECORD_MEMBER, "workflows/record_member.lua");
script!(END_WORKFLOW, "workflows/end_workflow.lua");
script!(RESCHEDULE, "workflows/reschedule.lua", with CLOCK);
script!(CANCEL_BEFORE_CREATE, "workflows/cancel_before_create.lua");
script!(PUBLISH, "channels/publish.lua", with CLOCK, TOPIC, LAST_ID);
script!(SETTLE_EPOCH, "connection/settle_epoch.lua", with CLOCK);
script!(LEAVE_CHANNEL, "channels/leave_channel.lua");
script!(READ_PAGE, "channels/read_page.lua", with LAST_ID);
script!(FIND_POSITION_AT, "channels/find_position_at.lua", with SEEK);
script!(TRIM_CHANNEL, "channels/trim_channel.lua", with CLOCK, GROUPS, LAST_ID, SEEK);
script!(REGISTER_CHANNEL, "channels/register_channel.lua", with CLOCK);
script!(SAVE_READER_COUNTS, "channels/save_reader_counts.lua");
script!(JOIN_MEMBERS, "channels/join_members.lua", with CLOCK, TOPIC, PRESENCE);
script!(LEAVE_MEMBERS, "channels/leave_members.lua", with TOPIC, PRESENCE);
script!(RENEW_MEMBERS, "channels/renew_members.lua", with CLOCK, TOPIC, PRESENCE);
script!(READ_MEMBERS, "channels/read_members.lua", with CLOCK);
script!(LIST_GATEWAY, "channels/list_gateway.lua", with CLOCK);
script!(SAVE_SUBSCRIPTION, "subscriptions/save_subscription.lua", with COMPARE_AND_SET);
script!(RESTORE_SUBSCRIPTIONS, "subscriptions/restore_subscriptions.lua");
script!(OPEN_GROUP, "subscriptions/open_group.lua", with GROUPS, JOIN, LAST_ID);
script!(CREATE_CHANNEL_GROUPS, "channels/create_channel_groups.lua", with GROUPS, JOIN);
script!(READ_GROUP, "subscriptions/read_group.lua", with FOLLOWS);
script!(ACK_MESSAGES, "subscriptions/ack_messages.lua");
script!(COUNT_MESSAGES, "subscriptions/count_messages.lua", with CLOCK, COUNTERS);
script!(FIND_IDLE, "subscriptions/find_idle.lua");
script!(RECLAIM, "subscriptions/reclaim.lua");
script!(CLAIM_CHANNEL, "subscriptions/claim_channel.lua", with CLOCK, FOLLOWS);
script!(BLOCK_CHANNEL, "subscriptions/block_channel.lua", with CLOCK);
script!(SEEK_GROUP, "subscriptions/seek_group.lua", with LAST_ID);
script!(CHANNEL_PROGRESS, "subscriptions/channel_progress.lua", with GROUPS, JOIN, LAST_ID, SEEK);
script!(RECORD_FAILURE, "subscriptions/record_failure.lua", with CLOCK, COUNTERS);
script!(SAVE_CHECKPOINT, "subscriptions/save_checkpoint.lua");
script!(LIST_BROADCAST_WORKER, "subscriptions/list_broadcast_worker.lua", with CLOCK);
script!(PRUNE_CONSUMERS, "subscriptions/prune_consumers.lua");
script!(ACQUIRE_LEADERSHIP, "maintenance/acquire_leadership.lua", with CLOCK);
script!(HEAL_LEASES, "maintenance/heal_leases.lua", with CLOCK);
script!(HEAL_PENDING, "maintenance/heal_pending.lua");
script!(HEAL_RETRIES, "maintenance/heal_retries.lua", with CLOCK);
script!(SAVE_API_KEY, "api_keys/save_key.lua", with COMPARE_AND_SET);
script!(NOTE_KEY_USE, "api_keys/note_use.lua");
script!(SAVE_CRON_ENTRY, "cron/save_entry.lua", with CLOCK, COMPARE_AND_SET);
script!(REMOVE_CRON_ENTRY, "cron/remove_entry.lua");
script!(EVENT_POSITION, "events/event_position.lua");
script!(FOLD_STATISTICS, "statistics/fold.lua");
script!(REPLACE_STATISTICS, "statistics/replace.lua");
script!(READ_STATISTICS, "statistics/read.lua");
script!(CHECK_CLAIM, "connection/check_claim.lua");
script!(LIST_WORKER, "workers/list_worker.lua", with CLOCK);
script!(STORE_REPORT, "workers/store_report.lua");
script!(RECEIVE_DIRECTIVE, "workers/receive_directive.lua");

/// The script with shared functions after its first line: `#!lua` must stay first.
fn with_preludes(shared: &[&str], text: &str) -> String {
    let (first, rest) = text.split_once('\n').unwrap_or((text, ""));
    format!("{first}\n{}\n{rest}", shared.concat())
}

/// Calls one script many times in one pipeline. Returns the answers in the order of the calls.
pub(crate) async fn invoke_each(redis: &mut Redis, calls: &[ScriptInvocation<'_>]) -> Vec<RedisResult<Value>> {
    let mut answers = send_each(redis, calls.iter()).await;
    let is_unknown = |answer: &RedisResult<Value>| {
        answer.as_ref().is_err_and(|error| error.kind() == ErrorKind::Server(ServerErrorKind::NoScript))
    };
    let unknown: Vec<usize> = (0..calls.len()).filter(|number| is_unknown(&answers[*number])).collect();
    if let Some(first) = unknown.first()
        && calls[*first].load_async(redis).await.is_ok()
    {
        let again = send_each(redis, unknown.iter().map(|number| &calls[*number])).await;
        unknown.into_iter().zip(again).for_each(|(number, answer)| answers[number] = answer);
    }
    answers
}

async fn send_each<'a>(
    redis: &mut Redis,
    calls: impl ExactSizeIterator<Item = &'a ScriptInvocation<'a>>,
) -> Vec<RedisResult<Value>> {
    let count = calls.len();
    if count == 0 {
        return Vec::new();
    }
    let mut pipeline = redis::Pipeline::with_capacity(count);
    pipeline.ignore_errors();
    for call in calls {
        pipeline.invoke_script(call);
    }
    let failed = |error: RedisError| (0..count).map(|_| Err(error.clone())).collect();
    pipeline.query_async(redis).await.unwrap_or_else(failed)
}

#[cfg(test)]
mod key_slots;

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeSet;

    /// All scripts and preludes: file name and text.
    pub(crate) fn files() -> Vec<(String, String)> {
        let (mut folders, mut files) = (vec![concat!(env!("CARGO_MANIFEST_DIR"), "/src").into()], Vec::new());
        while let Some(folder) = folders.pop() {
            let folder: std::path::PathBuf = folder;
            for path in std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()) {
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|x| x == "lua") {
                    files.push((path.display().to_string(), std::fs::read_to_string(&path).expect("text")));
                }
            }
        }
        files
    }

    /// The expression that a command gets as its key.
    fn key_of(call: &str) -> Option<&str> {
        let mut words = call.split(',').map(|word| word.split(')').next().unwrap_or_default().trim());
        let command = words.next()?.trim_matches('\'');
        match command {
            "TIME" | "PUBLISH" | "SPUBLISH" => None,
            // The key follows a subcommand
            "XGROUP" | "XINFO" | "MEMORY" => words.nth(1),
            "XREADGROUP" => words.find(|word| *word == "'STREAMS'").and_then(|_| words.next()),
            _ => words.next(),
        }
    }

    /// Names that may stand for a declared key: parameters of functions, and locals set to one of KEYS.
    fn names_of_keys(text: &str) -> BTreeSet<&str> {
        let mut names = BTreeSet::new();
        for line in text.lines().map(str::trim) {
            if let Some((_, rest)) = line.strip_prefix("local function ").and_then(|rest| rest.split_once('(')) {
                names.extend(rest.trim_end_matches(')').split(',').map(str::trim));
            } else if let Some((left, right)) = line.strip_prefix("local ").and_then(|rest| rest.split_once(" = ")) {
                let pairs = left.split(", ").zip(right.split(", "));
                names.extend(pairs.filter(|(_, value)| value.starts_with("KEYS[")).map(|(name, _)| name));
            }
        }
        names
    }

    #[test]
    fn no_script_touches_a_key_that_it_did_not_declare() {
        let mut calls = 0;
        for (file, text) in files() {
            let code: String =
                text.lines().map(|line| line.split("--").next().unwrap_or_default()).collect::<Vec<_>>().join("\n");
            let names = names_of_keys(&code);
            for call in code.split("redis.call(").skip(1).chain(code.split("redis.pcall(").skip(1)) {
                let Some(key) = key_of(call) else { continue };
                let is_declared = key.starts_with("KEYS[") || key.starts_with("unpack(KEYS") || names.contains(key);
                // complete_batch, delete_queue and check_one collect these from KEYS
                let of_batch =
                    ["record", "uniqueness", "admitted"].contains(&key) && file.ends_with("complete_batch.lua");
                let is_gathered = of_batch || ["unpack(records", "parked_in[state]", "set"].contains(&key);
                assert!(is_declared || is_gathered, "{file}: {key} in {}", call.lines().next().unwrap_or_default());
                calls += 1;
            }
        }
        assert!(calls > 100, "only {calls} calls were found");
    }
    /// Whether an expression uses one of the names.
    fn uses_one_of(names: &BTreeSet<&str>, expression: &str) -> bool {
        expression.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| names.contains(word))
    }

    /// Names that lead to where a list begins in KEYS or ARGV: a first index (`local first_id = 5`, or a parameter of that
    /// kind), and what is computed or walked from one.
    fn names_of_indexes<'a>(declarations: &[&'a str], body: &[&'a str]) -> BTreeSet<&'a str> {
        let mut names = BTreeSet::new();
        for (name, value) in declarations.iter().filter_map(|line| line.strip_prefix("local ")?.split_once(" = ")) {
            if value.bytes().all(|byte| byte.is_ascii_digit()) {
                names.insert(name);
            }
        }
        for line in body.iter().map(|line| line.trim()) {
            if let Some((_, parameters)) = line.strip_prefix("local function ").and_then(|rest| rest.split_once('(')) {
                let parameters = parameters.trim_end_matches(')').split(", ");
                names.extend(parameters.filter(|name| name.starts_with("first_")));
            }
            let assigned = line.strip_prefix("local ").or_else(|| line.strip_prefix("for ")).unwrap_or_default();
            if let Some((name, _)) = assigned.split_once(" = ").filter(|(_, value)| uses_one_of(&names, value)) {
                names.insert(name);
            }
        }
        names
    }

    /// What a script uses by its number behind the declarations at its top, such as `KEYS[2]`.
    fn numbered_arguments(text: &str) -> Vec<&str> {
        let code = text.lines().map(|line| line.split("--").next().unwrap_or_default());
        let lines: Vec<&str> = code.skip_while(|line| line.is_empty() || line.starts_with("#!")).collect();
        let is_declaration = |line: &str| line.starts_with("local ") && !line.starts_with("local function ");
        let end = lines.iter().position(|line| !is_declaration(line) && !line.starts_with("  ")).unwrap_or(lines.len());
        let (declarations, body) = lines.split_at(end);
        let indexes = names_of_indexes(declarations, body);
        let mut found = Vec::new();
        for line in body {
            for (opening, closing) in [("KEYS[", ']'), ("ARGV[", ']'), ("unpack(KEYS, ", ')'), ("unpack(ARGV, ", ')')] {
                for (at, _) in line.match_indices(opening) {
                    let rest = &line[at..];
                    let argument = &rest[..rest.find(closing).map_or(rest.len(), |end| end + 1)];
                    if !uses_one_of(&indexes, argument) {
                        found.push(argument);
                    }
                }
            }
        }
        found
    }

    #[test]
    fn no_refused_notification_aborts_the_change_that_it_announces() {
        for (file, text) in files() {
            let is_refused = text.contains("redis.call('PUBLISH'") || text.contains("redis.call('SPUBLISH'");
            assert!(!is_refused, "{file}: publish with redis.pcall");
        }
    }

    #[test]
    fn everything_that_is_due_at_a_time_is_set_where_the_leader_learns_of_it() {
        // Sets whose scores are no due times for the leader, and those that it reads regularly without a notification
        let others = [
            "admitted",
            "bridged",
            "channels",
            "dead_letters",
            "ended_jobs",
            "gateways",
            "key_queue",
            "pending",
            "queues",
            "silent",
            "starts",
            "workers",
            "workflows",
        ];
        let mut sets = 0;
        for (file, text) in files() {
            // `clock.lua` has set_due, which all others must use. A claim notifies once for all its leases. The leader
            // itself heals times, and reads every queue then
            let is_exempt = ["/clock.lua", "/claim.lua", "/heal_leases.lua", "/heal_retries.lua"];
            if is_exempt.iter().any(|name| file.ends_with(name)) {
                continue;
            }
            for set in text.split("'ZADD', ").skip(1).filter_map(|call| call.split(',').next()) {
                assert!(others.contains(&set), "{file}: change {set} with set_due");
                sets += 1;
            }
        }
        assert!(sets > 10, "only {sets} were found");
    }

    #[test]
    fn scripts_use_keys_and_arguments_by_name() {
        let script = "#!lua\n-- KEYS[1]\nlocal key = KEYS[1]\nlocal first_id = 2\n\nfor i = first_id, #ARGV do use(ARGV[i]) end\n";
        assert_eq!(numbered_arguments(script), Vec::<&str>::new());
        let more = format!("{script}use(KEYS[1], KEYS[j], unpack(ARGV, 3), unpack(ARGV, first_id))\n");
        assert_eq!(numbered_arguments(&more), ["KEYS[1]", "KEYS[j]", "unpack(ARGV, 3)"]);
        let files = files();
        let unnamed: Vec<_> = files.iter().map(|(file, text)| (file, numbered_arguments(text))).collect();
        let unnamed: Vec<_> = unnamed.iter().filter(|(_, found)| !found.is_empty()).collect();
        assert!(unnamed.is_empty(), "give these a name in the first lines: {unnamed:#?}");
    }
}
