//! The Lua scripts, one change of state each. Each file says what it does, what it is given and why it may run twice.
//!
//! They are called by their hash; after SCRIPT FLUSH or a restart Redis does not know it and is given the text again.

use std::sync::LazyLock;

use redis::Script;

/// Functions that several scripts share.
const CLOCK: &str = include_str!("../../scripts/clock.lua");
const FENCE: &str = include_str!("../../scripts/fence.lua");
const DEPTH: &str = include_str!("../../scripts/depth.lua");
const SEEK: &str = include_str!("../../scripts/seek.lua");
const PLACE: &str = include_str!("../../scripts/place.lua");
const NEWEST: &str = include_str!("../../scripts/newest.lua");
const GROUPS: &str = include_str!("../../scripts/groups.lua");
const JOIN: &str = include_str!("../../scripts/join.lua");
const OBSTACLE: &str = include_str!("../../scripts/obstacle.lua");
const FOLLOWS: &str = include_str!("../../scripts/follows.lua");
const FIGURES: &str = include_str!("../../scripts/figures.lua");

macro_rules! script {
    ($name:ident, $file:literal $(, with $($shared:ident),+)?) => {
        pub(super) static $name: LazyLock<Script> = LazyLock::new(|| {
            Script::new(&joined(&[$($($shared),+)?], include_str!(concat!("../../scripts/", $file))))
        });
    };
}

script!(OPEN_STREAM, "open_stream.lua");
script!(ENQUEUE_BOUNDED, "enqueue_bounded.lua", with DEPTH);
script!(CREATE, "create.lua", with CLOCK, DEPTH, PLACE);
script!(PROMOTE, "promote.lua", with CLOCK, PLACE);
script!(LINE_UP, "line_up.lua", with CLOCK, PLACE);
script!(ADMIT, "admit.lua", with CLOCK, PLACE);
script!(CLAIM, "claim.lua", with CLOCK, FENCE);
script!(HEARTBEAT, "heartbeat.lua", with CLOCK, FENCE);
script!(PROGRESS, "progress.lua", with CLOCK, FENCE);
script!(RENEW, "renew.lua", with CLOCK, FENCE);
script!(LEND, "lend.lua", with CLOCK, FENCE);
script!(COMPLETE_BATCH, "complete_batch.lua");
script!(FINISH, "finish.lua", with CLOCK, FENCE);
script!(RETRY, "retry.lua", with CLOCK, FENCE);
script!(REQUEUE, "requeue.lua", with CLOCK, FENCE, PLACE);
script!(CANCEL, "cancel.lua", with CLOCK, FENCE);
script!(DELAY_TIMER, "delay_timer.lua");
script!(HOLD_BACK, "hold_back.lua", with CLOCK, FENCE);
script!(DELETE_QUEUE, "delete_queue.lua");
script!(RELEASE, "release.lua");
script!(RECONCILE, "reconcile.lua", with CLOCK, PLACE);
script!(RECOUNT, "recount.lua");
script!(LIST_ENTRIES, "list_entries.lua");
script!(LOCATE, "locate.lua");
script!(REDRIVE, "redrive.lua", with CLOCK, PLACE);
script!(BRIDGE, "bridge.lua");
script!(CREATE_WORKFLOW, "create_workflow.lua");
script!(NOTE_STARTED, "note_started.lua");
script!(RECORD_MEMBER, "record_member.lua");
script!(END_WORKFLOW, "end_workflow.lua");
script!(LOOK_AGAIN, "look_again.lua", with CLOCK);
script!(CANCEL_UNBORN, "cancel_unborn.lua");
script!(PUBLISH, "publish.lua", with CLOCK, NEWEST);
script!(SETTLE_EPOCH, "settle_epoch.lua", with CLOCK);
script!(READ_PAGE, "read_page.lua", with NEWEST);
script!(FIND_TIME, "find_time.lua", with SEEK);
script!(TRIM_CHANNEL, "trim_channel.lua", with CLOCK, GROUPS, NEWEST, SEEK);
script!(REGISTER_CHANNEL, "register_channel.lua", with CLOCK);
script!(NOTE_READERS, "note_readers.lua", with CLOCK);
script!(SAVE_SUBSCRIPTION, "save_subscription.lua", with OBSTACLE);
script!(RESTORE_SUBSCRIPTIONS, "restore_subscriptions.lua");
script!(OPEN_GROUP, "open_group.lua", with GROUPS, JOIN, NEWEST);
script!(JOIN_CHANNEL, "join_channel.lua", with GROUPS, JOIN);
script!(READ_GROUP, "read_group.lua", with FOLLOWS);
script!(ACK_MESSAGES, "ack_messages.lua", with CLOCK, FIGURES);
script!(FIND_SILENT, "find_silent.lua");
script!(TAKE_OVER, "take_over.lua");
script!(TAKE_IN_ORDER, "take_in_order.lua", with CLOCK, FIGURES, FOLLOWS);
script!(HOLD_UP, "hold_up.lua", with CLOCK);
script!(SEEK_GROUP, "seek_group.lua", with NEWEST);
script!(PROGRESS_OF, "progress_of.lua", with NEWEST, SEEK);
script!(NOTE_FAILURE, "note_failure.lua", with CLOCK, FIGURES);
script!(CHECKPOINT, "checkpoint.lua", with CLOCK, FIGURES);
script!(PRUNE_CONSUMERS, "prune_consumers.lua");
script!(KEEP_OFFICE, "keep_office.lua");
script!(CRON_SAVE, "cron_save.lua", with CLOCK, OBSTACLE);
script!(CRON_REMOVE, "cron_remove.lua");
script!(EVENT_PLACE, "event_place.lua");
script!(BEAT, "beat.lua", with CLOCK);

/// The script with shared functions behind its first line, which has to stay first.
fn joined(shared: &[&str], text: &str) -> String {
    let (first, rest) = text.split_once('\n').unwrap_or((text, ""));
    format!("{first}\n{}\n{rest}", shared.concat())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    /// The scripts and what they share, by file name.
    fn files() -> Vec<(String, String)> {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts");
        let files = std::fs::read_dir(folder).expect("a folder").map(|file| file.expect("a file").path());
        files.map(|path| (path.display().to_string(), std::fs::read_to_string(&path).expect("text"))).collect()
    }

    /// The expression that a call of a command has in the place of its key.
    fn key_of(call: &str) -> Option<&str> {
        let mut words = call.split(',').map(|word| word.split(')').next().unwrap_or_default().trim());
        let command = words.next()?.trim_matches('\'');
        match command {
            "TIME" | "PUBLISH" => None,
            // The key follows a subcommand
            "XGROUP" | "XINFO" | "MEMORY" => words.nth(1),
            "XREADGROUP" => words.find(|word| *word == "'STREAMS'").and_then(|_| words.next()),
            _ => words.next(),
        }
    }

    /// Names that stand for a declared key: parameters of functions, which are given one, and locals set to one.
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
                // Gathered from KEYS by complete_batch and reconcile
                let is_gathered = ["unpack(records", "parked_in[state]", "set"].contains(&key);
                assert!(is_declared || is_gathered, "{file}: {key} in {}", call.lines().next().unwrap_or_default());
                calls += 1;
            }
        }
        assert!(calls > 100, "only {calls} calls were found");
    }
}
