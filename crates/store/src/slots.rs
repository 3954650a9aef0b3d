//! The slots of Redis Cluster. A script, a command of several keys and a transaction work there only if all their keys are
//! in one slot. Debug builds, so all tests, check that of everything that a process sends.
//!
//! Two things may span slots, and ADR 43 says what becomes of them: a pipeline without a transaction, whose commands have
//! a slot each, and a read of the streams of several queues at once, which is split by slot.

use std::sync::LazyLock;

use common::hash::cluster_slot;
use redis::{Arg, Cmd, Pipeline, ScriptInvocation};

/// The number of slots.
pub(crate) use common::hash::CLUSTER_SLOTS as SLOTS;

/// The slot of a key.
pub(crate) fn slot_of(key: &[u8]) -> u16 {
    cluster_slot(hashed_part(key))
}

/// A number that has this slot as a tag: the first one.
pub(crate) fn tag_of_slot(slot: u16) -> u32 {
    static TAGS: LazyLock<Vec<u32>> = LazyLock::new(|| {
        let (mut tags, mut missing) = (vec![None; usize::from(SLOTS)], SLOTS);
        for number in 0_u32.. {
            let tag = &mut tags[usize::from(slot_of(number.to_string().as_bytes()))];
            if tag.replace(tag.unwrap_or(number)).is_none() {
                missing -= 1;
            }
            if missing == 0 {
                break;
            }
        }
        tags.into_iter().flatten().collect()
    });
    TAGS[usize::from(slot % SLOTS)]
}

/// What decides on the slot of a key: its hash tag, which is what stands between the first `{` and the next `}`, if it has
/// one.
fn hashed_part(key: &[u8]) -> &[u8] {
    let tag = || {
        let rest = &key[key.iter().position(|byte| *byte == b'{')? + 1..];
        let tag = &rest[..rest.iter().position(|byte| *byte == b'}')?];
        (!tag.is_empty()).then_some(tag)
    };
    tag().unwrap_or(key)
}

/// Checks a command in debug builds.
pub(crate) fn check_command(command: &Cmd) {
    if cfg!(debug_assertions) && has_several_keys(command) {
        assert_one_slot(&keys_of(command));
    }
}

/// Checks each command of a pipeline in debug builds, and all of a transaction together.
pub(crate) fn check_pipeline(pipeline: &Pipeline) {
    if !cfg!(debug_assertions) {
        return;
    }
    pipeline.cmd_iter().for_each(check_command);
    if pipeline.is_transaction() {
        assert_one_slot(&pipeline.cmd_iter().flat_map(keys_of).collect::<Vec<_>>());
    }
}

/// Checks a call of a script in debug builds.
pub(crate) fn check_call(call: &ScriptInvocation<'_>) {
    if cfg!(debug_assertions) {
        check_pipeline(redis::pipe().invoke_script(call));
    }
}

#[track_caller]
fn assert_one_slot(keys: &[&[u8]]) {
    let Some(first) = keys.first() else { return };
    let is_elsewhere = |key: &&&[u8]| hashed_part(key) != hashed_part(first) && slot_of(key) != slot_of(first);
    if let Some(other) = keys.iter().find(is_elsewhere) {
        let text = |key: &[u8]| String::from_utf8_lossy(key).into_owned();
        panic!("{:?} and {:?} have different slots of Redis Cluster", text(first), text(other));
    }
}

/// The slot of a command; none if it has no keys. A read of several streams has that of the first one.
pub(crate) fn slot_of_command(command: &Cmd) -> Option<u16> {
    if matches!(command.args_iter().next(), Some(Arg::Simple(b"XREAD" | b"XREADGROUP"))) {
        let words: Vec<Arg<&[u8]>> = command.args_iter().collect();
        return match words.get(first_stream(&words)?) {
            Some(Arg::Simple(key)) => Some(slot_of(key)),
            _ => None,
        };
    }
    keys_of(command).first().map(|key| slot_of(key))
}

/// Where the streams begin in the words of a command that reads some.
pub(crate) fn first_stream(words: &[Arg<&[u8]>]) -> Option<usize> {
    let options = match words.first()? {
        Arg::Simple(b"XREAD") => 1,
        // The name of the group or of the consumer may be that of an option
        Arg::Simple(b"XREADGROUP") => 4,
        _ => return None,
    };
    let is_keyword = |word: &Arg<&[u8]>| matches!(word, Arg::Simple(b"STREAMS"));
    Some(options + words.iter().skip(options).position(is_keyword)? + 1)
}

/// Whether a command is one of those that may have several keys: most are not, and tests send millions of them.
fn has_several_keys(command: &Cmd) -> bool {
    let several: [&[u8]; 7] = [b"EVALSHA", b"EVAL", b"DEL", b"EXISTS", b"MGET", b"BLMOVE", b"LMOVE"];
    matches!(command.args_iter().next(), Some(Arg::Simple(name)) if several.contains(&name))
}

/// The keys of a command that must share a slot.
fn keys_of(command: &Cmd) -> Vec<&[u8]> {
    let mut arguments = command.args_iter().map(|argument| match argument {
        Arg::Simple(bytes) => bytes,
        _ => b"0".as_slice(),
    });
    let Some(name) = arguments.next() else { return Vec::new() };
    match name {
        b"EVALSHA" | b"EVAL" => {
            let count = arguments.nth(1).and_then(|count| std::str::from_utf8(count).ok()?.parse().ok());
            arguments.take(count.unwrap_or(0)).collect()
        }
        b"DEL" | b"EXISTS" | b"MGET" => arguments.collect(),
        b"BLMOVE" | b"LMOVE" => arguments.take(2).collect(),
        b"XGROUP" | b"XINFO" | b"MEMORY" => arguments.skip(1).take(1).collect(),
        b"XREAD" | b"XREADGROUP" | b"PING" | b"TIME" | b"INFO" | b"CONFIG" | b"CLIENT" | b"SCRIPT" | b"SCAN"
        | b"CLUSTER" | b"ASKING" | b"HELLO" | b"SELECT" | b"SUBSCRIBE" | b"UNSUBSCRIBE" | b"PUBLISH" | b"MULTI"
        | b"EXEC" | b"DISCARD" | b"UNWATCH" | b"WAIT" | b"WAITAOF" => Vec::new(),
        _ => arguments.take(1).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn slots_are_those_of_the_specification() {
        for (key, slot) in [("foo", 12_182), ("{foo}.bar", 12_182), ("a{foo}{b}", 12_182)] {
            assert_eq!(slot_of(key.as_bytes()), slot, "{key}");
        }
        assert_eq!(slot_of(b"{}foo"), cluster_slot(b"{}foo"), "an empty tag is none");
        assert_eq!(slot_of(b"{foo"), cluster_slot(b"{foo"));
    }

    #[test]
    fn every_slot_has_a_tag() {
        for slot in 0..SLOTS {
            assert_eq!(slot_of(crate::keys::epoch_of_slot(slot).as_bytes()), slot);
        }
    }

    proptest! {
        #[test]
        fn every_key_has_the_slot_of_its_tag(tag in "[^{}]{1,20}", before in "[^{]{0,9}", after in ".{0,9}") {
            prop_assert_eq!(slot_of(format!("{before}{{{tag}}}{after}").as_bytes()), slot_of(tag.as_bytes()));
        }
    }

    #[tokio::test]
    async fn slots_are_those_of_redis() {
        let server =
            testkit::RedisServer::start_with_options(testkit::RedisPersistence::None, &["--cluster-enabled", "yes"]);
        let client = redis::Client::open(format!("redis://127.0.0.1:{}", server.port())).expect("a URL");
        let config = testkit::patient_config();
        let mut connection = client.get_multiplexed_async_connection_with_config(&config).await.expect("redis runs");
        let keys = [
            "galley:queues",
            "galley:{mail}:j:7",
            "galley:{ch:a.b}:m",
            "galley:{galley:leader}:clock",
            "{}x",
            "a}{b}c",
            "a{b{c}d}",
            "é{ü}",
        ];
        for key in keys {
            let mut ask = redis::cmd("CLUSTER");
            let slot: u16 = ask.arg("KEYSLOT").arg(key).query_async(&mut connection).await.expect("a slot");
            assert_eq!(slot_of(key.as_bytes()), slot, "{key}");
        }
    }

    fn command(words: &str) -> Cmd {
        let mut words = words.split(' ');
        let mut command = redis::cmd(words.next().expect("a name"));
        words.for_each(|word| {
            command.arg(word);
        });
        command
    }

    fn is_refused(check: impl FnOnce() + std::panic::UnwindSafe) -> bool {
        std::panic::catch_unwind(check).is_err()
    }

    #[test]
    fn what_spans_slots_is_refused() {
        for words in [
            "EVALSHA hash 2 galley:{a}:x galley:{b}:x",
            "DEL a b",
            "EXISTS {a}b {b}a",
            "MGET a {a} b",
            "LMOVE a b LEFT RIGHT",
            "BLMOVE a b LEFT RIGHT 1",
        ] {
            assert!(is_refused(|| check_command(&command(words))), "{words}");
        }
        for words in ["EVALSHA hash 2 galley:{a}:x galley:{a}:y galley:{b}:x", "DEL a", "MGET a {a}b", "GET a", "PING"]
        {
            check_command(&command(words));
        }
        let mut pipeline = redis::pipe();
        pipeline.add_command(command("HSET a f v")).add_command(command("XINFO STREAM b"));
        check_pipeline(&pipeline);
        pipeline.atomic();
        assert!(is_refused(|| check_pipeline(&pipeline)), "a transaction has one slot");
    }

    #[test]
    fn a_call_of_a_script_has_one_slot() {
        let script = redis::Script::new("return 1");
        let mut call = script.key("{a}b");
        call.key("{a}c").arg("{b}");
        check_call(&call);
        call.key("{b}c");
        assert!(is_refused(std::panic::AssertUnwindSafe(|| check_call(&call))));
    }
}
