//! The Lua scripts, one change of state each. Each file says what it does, what it is given and why it may run twice.
//!
//! They are called by their hash; after SCRIPT FLUSH or a restart Redis does not know it and is given the text again.

use std::sync::LazyLock;

use redis::Script;

/// Functions that several scripts share.
const CLOCK: &str = include_str!("../../scripts/clock.lua");
const FENCE: &str = include_str!("../../scripts/fence.lua");
const DEPTH: &str = include_str!("../../scripts/depth.lua");
const PLACE: &str = include_str!("../../scripts/place.lua");

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
script!(COMPLETE_BATCH, "complete_batch.lua");
script!(FINISH, "finish.lua", with CLOCK, FENCE);
script!(RETRY, "retry.lua", with CLOCK, FENCE);
script!(REQUEUE, "requeue.lua", with CLOCK, FENCE, PLACE);
script!(CANCEL, "cancel.lua", with CLOCK, FENCE);
script!(DELETE_QUEUE, "delete_queue.lua");
script!(RELEASE, "release.lua");
script!(RECONCILE, "reconcile.lua", with CLOCK, PLACE);
script!(RECOUNT, "recount.lua");
script!(LIST_ENTRIES, "list_entries.lua");
script!(LOCATE, "locate.lua");
script!(REDRIVE, "redrive.lua", with CLOCK, FENCE, PLACE);
script!(BRIDGE, "bridge.lua");
script!(CREATE_WORKFLOW, "create_workflow.lua");
script!(NOTE_STARTED, "note_started.lua");
script!(RECORD_MEMBER, "record_member.lua");
script!(END_WORKFLOW, "end_workflow.lua");
script!(LOOK_AGAIN, "look_again.lua");
script!(CANCEL_UNBORN, "cancel_unborn.lua");
script!(PUBLISH, "publish.lua");
script!(PRUNE_CONSUMERS, "prune_consumers.lua");
script!(KEEP_OFFICE, "keep_office.lua");
script!(CRON_SAVE, "cron_save.lua");
script!(CRON_REMOVE, "cron_remove.lua");
script!(EVENT_PLACE, "event_place.lua");
script!(BEAT, "beat.lua");

/// The script with shared functions behind its first line, which has to stay first.
fn joined(shared: &[&str], text: &str) -> String {
    let (first, rest) = text.split_once('\n').unwrap_or((text, ""));
    format!("{first}\n{}\n{rest}", shared.concat())
}
