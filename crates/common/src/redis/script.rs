//! The Lua scripts, one change of state each. Each file says what it does, what it is given and why it may run twice.
//!
//! They are called by their hash; after SCRIPT FLUSH or a restart Redis does not know it and is given the text again.

use std::sync::LazyLock;

use redis::Script;

const FENCE: &str = include_str!("../../scripts/fence.lua");

macro_rules! script {
    ($name:ident, $file:literal) => {
        pub(super) static $name: LazyLock<Script> =
            LazyLock::new(|| Script::new(include_str!(concat!("../../scripts/", $file))));
    };
    ($name:ident, $file:literal, fenced) => {
        pub(super) static $name: LazyLock<Script> =
            LazyLock::new(|| Script::new(&fenced(include_str!(concat!("../../scripts/", $file)))));
    };
}

script!(OPEN_STREAM, "open_stream.lua");
script!(ENQUEUE_BOUNDED, "enqueue_bounded.lua");
script!(CREATE, "create.lua");
script!(PROMOTE, "promote.lua");
script!(CLAIM, "claim.lua", fenced);
script!(HEARTBEAT, "heartbeat.lua", fenced);
script!(RENEW, "renew.lua", fenced);
script!(COMPLETE_BATCH, "complete_batch.lua");
script!(FINISH, "finish.lua", fenced);
script!(RETRY, "retry.lua", fenced);
script!(REQUEUE, "requeue.lua", fenced);
script!(CANCEL, "cancel.lua", fenced);
script!(LOCATE, "locate.lua");
script!(REDRIVE, "redrive.lua");
script!(BRIDGE, "bridge.lua");
script!(PUBLISH, "publish.lua");
script!(PRUNE_CONSUMERS, "prune_consumers.lua");
script!(KEEP_OFFICE, "keep_office.lua");

/// The script with the shared functions behind its first line, which has to stay first.
fn fenced(text: &str) -> String {
    let (first, rest) = text.split_once('\n').unwrap_or((text, ""));
    format!("{first}\n{FENCE}\n{rest}")
}
