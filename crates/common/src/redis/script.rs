//! The Lua scripts, one change of state each. Each file says what it does, what it is given and why it may run twice.
//!
//! They are called by their hash; after SCRIPT FLUSH or a restart Redis does not know it and is given the text again.

use std::sync::LazyLock;

use redis::Script;

/// Functions that several scripts share.
const FENCE: &str = include_str!("../../scripts/fence.lua");
const DEPTH: &str = include_str!("../../scripts/depth.lua");

macro_rules! script {
    ($name:ident, $file:literal) => {
        pub(super) static $name: LazyLock<Script> =
            LazyLock::new(|| Script::new(include_str!(concat!("../../scripts/", $file))));
    };
    ($name:ident, $file:literal, with $shared:ident) => {
        pub(super) static $name: LazyLock<Script> =
            LazyLock::new(|| Script::new(&joined($shared, include_str!(concat!("../../scripts/", $file)))));
    };
}

script!(OPEN_STREAM, "open_stream.lua");
script!(ENQUEUE_BOUNDED, "enqueue_bounded.lua", with DEPTH);
script!(CREATE, "create.lua", with DEPTH);
script!(PROMOTE, "promote.lua");
script!(CLAIM, "claim.lua", with FENCE);
script!(HEARTBEAT, "heartbeat.lua", with FENCE);
script!(RENEW, "renew.lua", with FENCE);
script!(COMPLETE_BATCH, "complete_batch.lua");
script!(FINISH, "finish.lua", with FENCE);
script!(RETRY, "retry.lua", with FENCE);
script!(REQUEUE, "requeue.lua", with FENCE);
script!(CANCEL, "cancel.lua", with FENCE);
script!(LOCATE, "locate.lua");
script!(REDRIVE, "redrive.lua");
script!(BRIDGE, "bridge.lua");
script!(PUBLISH, "publish.lua");
script!(PRUNE_CONSUMERS, "prune_consumers.lua");
script!(KEEP_OFFICE, "keep_office.lua");
script!(EVENT_PLACE, "event_place.lua");
script!(BEAT, "beat.lua");

/// The script with shared functions behind its first line, which has to stay first.
fn joined(shared: &str, text: &str) -> String {
    let (first, rest) = text.split_once('\n').unwrap_or((text, ""));
    format!("{first}\n{shared}\n{rest}")
}
