//! Whether the user of `redis.url` may do what Galley needs. Redis checks permissions when a command is queued in a
//! transaction, so every command is queued once, and the transaction is discarded: nothing is executed.
//!
//! A test compares the list with the commands of the sources, and `docs/redis.md` with the rules that follow from it.

use std::collections::BTreeSet;

use redis::{RedisResult, Value, aio::ConnectionLike};

use crate::keys::TopicNames;

/// One call of each command that Galley needs. `@` stands for a key of Galley, `&` for a pub/sub channel.
const NEEDED: [&str; 71] = [
    "CLIENT ID",
    "DEL @",
    "DISCARD",
    "EVALSHA 0 1 @",
    "EXEC",
    "EXISTS @",
    "GET @",
    "GETRANGE @ 0 1",
    "HDEL @ f",
    "HELLO",
    "HEXISTS @ f",
    "HGET @ f",
    "HGETALL @",
    "HINCRBY @ f 1",
    "HKEYS @",
    "HLEN @",
    "HMGET @ f",
    "HSCAN @ 0",
    "HSET @ f v",
    "HSETNX @ f v",
    "LPUSH @ v",
    "LRANGE @ 0 1",
    "LREM @ 1 v",
    "MEMORY USAGE @",
    "MGET @",
    "MULTI",
    "PERSIST @",
    "PEXPIRE @ 1",
    "PING",
    "PTTL @",
    "PUBLISH & m",
    "SADD @ m",
    "SCAN 0",
    "SCARD @",
    "SCRIPT LOAD s",
    "SELECT 0",
    "SET @ v",
    "SISMEMBER @ m",
    "SMEMBERS @",
    "SREM @ m",
    "SSCAN @ 0",
    "SUBSCRIBE &",
    "TIME",
    "UNSUBSCRIBE &",
    "UNWATCH",
    "XACK @ g 0-1",
    "XADD @ * f v",
    "XCLAIM @ g c 1 0-1",
    "XDEL @ 0-1",
    "XGROUP CREATE @ g 0",
    "XGROUP DELCONSUMER @ g c",
    "XGROUP DESTROY @ g",
    "XGROUP SETID @ g 0",
    "XINFO CONSUMERS @ g",
    "XINFO GROUPS @",
    "XINFO STREAM @",
    "XLEN @",
    "XPENDING @ g",
    "XRANGE @ - +",
    "XREAD STREAMS @ 0",
    "XREADGROUP GROUP g c STREAMS @ >",
    "XREVRANGE @ + -",
    "XTRIM @ MAXLEN 1",
    "ZADD @ 1 m",
    "ZCARD @",
    "ZCOUNT @ 0 1",
    "ZMSCORE @ m",
    "ZRANGE @ 0 1",
    "ZRANGEBYSCORE @ 0 1",
    "ZREM @ m",
    "ZSCORE @ m",
];

/// More of the same.
const NEEDED_TOO: [&str; 6] = [
    "ZREMRANGEBYRANK @ 0 1",
    "ZREMRANGEBYSCORE @ 0 1",
    "ZREVRANGE @ 0 1",
    "ZREVRANGEBYSCORE @ 1 0",
    "ZREVRANK @ m",
    "ZSCAN @ 0",
];

/// What moves the elements of a list to a queue: the queue-worker does.
pub const NEEDED_FOR_BRIDGE: [&str; 2] = ["BLMOVE @ @ RIGHT LEFT 1", "LMOVE @ @ RIGHT LEFT"];

/// What a user of a cluster needs more.
pub(super) const NEEDED_IN_CLUSTER: [&str; 6] =
    ["ASKING", "CLUSTER INFO", "CLUSTER SLOTS", "SPUBLISH & m", "SSUBSCRIBE &", "SUNSUBSCRIBE &"];

/// What confirms that writes have arrived, if `durability` asks for that. Redis knows the second one since 7.2.
pub(super) const WAIT: &str = "WAIT 0 1";
pub(super) const WAIT_FOR_DISK: &str = "WAITAOF 0 0 1";

/// What Galley uses where it may, each with what is missing without it. Managed services forbid these.
const OPTIONAL: [(&str, &str); 3] = [
    ("INFO server", "durability, eviction policy and memory are unknown"),
    ("CONFIG GET appendfsync", "durability is unknown"),
    ("CLIENT UNBLOCK 0", "waiting workers react after up to five seconds"),
];

/// A key and the end of a channel of Galley, in no use.
const SAMPLE_KEY: &str = "galley:access_check";
const SAMPLE_CHANNEL: &str = "access_check";

/// What the user may not do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct MissingAccess {
    /// Without these Galley does not work.
    pub(super) needed: BTreeSet<String>,
    /// What is missing without the others.
    pub(super) optional: BTreeSet<&'static str>,
}

/// Asks which commands the user may not run, and which of Galley's keys and channels it may not use. `extra` are more
/// calls that this service needs.
///
/// # Errors
/// The connection broke. After any error drop it: it may be in a transaction.
pub(super) async fn missing_access(
    connection: &mut impl ConnectionLike,
    extra: &[String],
    topics: &TopicNames,
) -> RedisResult<MissingAccess> {
    let channel = [topics.prefix(), SAMPLE_CHANNEL].concat();
    // Alone: without MULTI the other commands would be executed
    redis::cmd("MULTI").exec_async(connection).await?;
    let calls: Vec<&str> = needed().map(|call| -> &str { call }).chain(extra.iter().map(String::as_str)).collect();
    let needs_no_transaction = |call: &str| ["DISCARD", "EXEC", "MULTI", "HELLO"].contains(&call);
    let mut pipeline = redis::pipe();
    for call in &calls {
        // These would act at once, and they just worked
        append(&mut pipeline, if needs_no_transaction(call) { "PING" } else { call }, &channel);
    }
    for (call, _) in OPTIONAL {
        append(&mut pipeline, call, &channel);
    }
    pipeline.cmd("DISCARD");
    let length = calls.len() + OPTIONAL.len() + 1;
    let answers = connection.req_packed_commands(&pipeline, 0, length).await?;
    let (asked, optional) = answers.split_at(calls.len().min(answers.len()));
    let mut missing = MissingAccess::default();
    for (call, answer) in calls.iter().zip(asked) {
        if let Some(refusal) = refusal(call, answer, topics) {
            missing.needed.insert(refusal);
        }
    }
    let denied = OPTIONAL.iter().zip(optional).filter(|((call, _), answer)| refusal(call, answer, topics).is_some());
    missing.optional = denied.map(|((_, consequence), _)| *consequence).collect();
    Ok(missing)
}

fn append(pipeline: &mut redis::Pipeline, call: &str, channel: &str) {
    let mut words = call.split(' ');
    pipeline.cmd(words.next().unwrap_or_default());
    for word in words {
        pipeline.arg(match word {
            "@" => SAMPLE_KEY,
            "&" => channel,
            word => word,
        });
    }
}

/// What is refused of a call, if its answer is that; other errors, such as that Redis is full, do not count.
fn refusal(call: &str, answer: &Value, topics: &TopicNames) -> Option<String> {
    let Value::ServerError(error) = answer else { return None };
    let text = error.details().unwrap_or_default();
    match error.code() {
        "NOPERM" if text.contains("channels") || text.contains("a channel") => {
            Some(format!("the channel {}", object_of(call, topics)))
        }
        "NOPERM" if text.contains("keys") || text.contains("a key") => {
            Some(format!("the key {}", object_of(call, topics)))
        }
        "NOPERM" => Some(command_name(call)),
        "ERR" if text.starts_with("unknown command") => {
            Some(format!("{}, which this server lacks", command_name(call)))
        }
        _ => None,
    }
}

/// The key or channel of a call.
fn object_of(call: &str, topics: &TopicNames) -> String {
    match call.split(' ').nth(1).unwrap_or_default() {
        "&" => format!("{}*", topics.prefix()),
        _ if call.contains('@') => "galley:*".to_owned(),
        name => name.to_owned(),
    }
}

/// The command of a call, as rules name it: `xgroup|create`.
fn command_name(call: &str) -> String {
    let mut words = call.split(' ');
    let command = words.next().unwrap_or_default().to_lowercase();
    match (command.as_str(), words.next()) {
        ("client" | "cluster" | "config" | "memory" | "script" | "xgroup" | "xinfo", Some(sub)) => {
            format!("{command}|{}", sub.to_lowercase())
        }
        _ => command,
    }
}

fn needed() -> impl Iterator<Item = &'static str> {
    NEEDED.into_iter().chain(NEEDED_TOO)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::script::tests::files;

    fn names() -> BTreeSet<String> {
        needed().chain(NEEDED_FOR_BRIDGE).map(command_name).collect()
    }

    /// `deploy/redis.acl`: a user for each service, and one for monitoring. Passwords are left out: Redis does not start
    /// before they are filled in.
    fn acl_file() -> String {
        let plus = |names: BTreeSet<String>| names.iter().map(|name| format!("+{name}")).collect::<Vec<_>>().join(" ");
        // CONFIG GET would show the passwords of the server
        let optional = OPTIONAL.iter().map(|(call, _)| *call).filter(|call| !call.starts_with("CONFIG"));
        let common: Vec<&str> = needed().chain(optional).chain(["AUTH"]).collect();
        let with = |more: &[&str]| plus(common.iter().chain(more).map(|call| command_name(call)).collect());
        let user = |name: &str, keys: &str, channels: &str, commands: &str| {
            let password = name.to_uppercase().replace('-', "_");
            format!("user {name} on #@{password}_SHA256@ resetkeys{keys} resetchannels{channels} -@all {commands}\n")
        };
        [
            "user default off resetpass resetkeys resetchannels -@all\n".to_owned(),
            // Redis 7.0 refuses a file with WAITAOF
            user("gateway", " ~galley:* %W~task:prodcons:queue", " &galley:5:* &task:pubsub:channel", &with(&[WAIT])),
            user("queue-worker", " ~galley:* ~task:prodcons:queue", " &galley:5:*", &with(&NEEDED_FOR_BRIDGE)),
            user("pubsub-worker", " ~galley:*", " &galley:5:* &task:pubsub:channel", &with(&[])),
            user("monitoring", "", "", "+auth +hello +info +latency|latest +ping +slowlog|len"),
        ]
        .concat()
    }

    #[test]
    fn the_file_of_users_is_what_the_commands_need() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/redis.acl");
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(path, acl_file()).expect("the file can be written");
        }
        let present = std::fs::read_to_string(path).unwrap_or_default();
        assert!(present == acl_file(), "to write it again: UPDATE_DOCS=1 cargo test -p galley-store file_of_users");
    }

    /// The commands in a text, after each of the openings.
    fn commands_in(text: &str, openings: &[&str], separator: &str) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        for opening in openings {
            for rest in text.split(opening).skip(1) {
                let upper = |text: &str| text.chars().take_while(char::is_ascii_uppercase).collect::<String>();
                let command = upper(rest);
                let sub = rest[command.len()..].strip_prefix(separator).map(upper).unwrap_or_default();
                if !command.is_empty() {
                    found.insert(command_name(format!("{command} {sub}").trim_end()));
                }
            }
        }
        found
    }

    fn rust_files(folder: &std::path::Path) -> Vec<String> {
        let mut texts = Vec::new();
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                texts.extend(rust_files(&path));
            } else if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("access.rs") {
                texts.push(std::fs::read_to_string(&path).expect("text"));
            }
        }
        texts
    }

    #[test]
    fn every_command_that_is_used_is_checked_at_start() {
        let mut used = BTreeSet::new();
        for (_, text) in files() {
            used.extend(commands_in(&text, &["redis.call('", "redis.pcall('"], "', '"));
        }
        for text in rust_files(std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src"))) {
            let code = text.split("#[cfg(test)]").next().unwrap_or_default();
            used.extend(commands_in(code, &["cmd(\"", "scan_members(\""], "\").arg(\""));
        }
        // Named in an argument of its own
        used.remove("client");
        used.remove("cluster");
        used.remove("xinfo");
        let on_demand = [WAIT, WAIT_FOR_DISK];
        let optional =
            OPTIONAL.iter().map(|(call, _)| *call).chain(on_demand).chain(NEEDED_IN_CLUSTER).map(command_name);
        let (optional, names) = (optional.collect::<BTreeSet<String>>(), names());
        let unchecked: Vec<_> =
            used.iter().filter(|name| !names.contains(*name) && !optional.contains(*name)).collect();
        assert!(unchecked.is_empty(), "add these to the list: {unchecked:?}");
        assert!(used.len() > 60, "only {used:?} were found");
    }

    #[test]
    fn the_documented_rules_allow_what_is_checked() {
        let rules = names().iter().map(|name| format!("+{name}")).collect::<Vec<_>>().join(" ");
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/redis.md");
        let page = std::fs::read_to_string(page).expect("the page");
        let documented = page.split_whitespace().collect::<Vec<_>>().join(" ").replace("\\ ", "");
        assert!(documented.contains(&rules), "docs/redis.md lacks: {rules}");
        for call in OPTIONAL.iter().map(|(call, _)| *call).chain([WAIT, WAIT_FOR_DISK]).chain(NEEDED_IN_CLUSTER) {
            assert!(documented.contains(&format!("+{}", command_name(call))), "{call}");
        }
    }
}
