//! `deploy/redis.acl`: a user for each service, who may do what the service needs and nothing else.

use std::process::{Command, Stdio};

use testkit::{RedisServer, patient_config, redis, skip};

use crate::redis_requirements::assert_core_works;

const USERS: [&str; 4] = ["gateway", "queue-worker", "pubsub-worker", "monitoring"];

/// What nobody but an administrator may do.
const FORBIDDEN: [&str; 32] = [
    "FLUSHALL",
    "FLUSHDB",
    "KEYS *",
    "RANDOMKEY",
    "CONFIG SET maxmemory 1",
    "CONFIG GET requirepass",
    "CONFIG REWRITE",
    "EVAL return(1) 0",
    "FUNCTION LOAD x",
    "FCALL f 0",
    "SCRIPT FLUSH",
    "SHUTDOWN",
    "ACL LIST",
    "ACL SETUSER x",
    "MONITOR",
    "REPLICAOF NO ONE",
    "SAVE",
    "BGREWRITEAOF",
    "SWAPDB 0 5",
    "CLIENT KILL ID 1",
    "CLIENT LIST",
    "MODULE LIST",
    "GET of_others",
    "SET of_others y",
    "DEL of_others",
    "PUBLISH of_others x",
    "SUBSCRIBE of_others",
    "PSUBSCRIBE *",
    "RESTORE galley:x 0 x",
    "DUMP galley:x",
    "RENAME galley:x galley:y",
    "SORT galley:x",
];

pub(crate) fn password(user: &str) -> String {
    format!("secret-of-{user}")
}

/// The file as an operator completes it.
pub(crate) fn users() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/redis.acl");
    let mut lines = std::fs::read_to_string(path).expect("the file");
    for user in USERS {
        let placeholder = format!("@{}_SHA256@", user.to_uppercase().replace('-', "_"));
        assert!(lines.contains(&placeholder), "{placeholder}");
        lines = lines.replace(&placeholder, &sha256(&password(user)));
    }
    lines
}

/// As the documents say: `printf %s PASSWORD | sha256sum`.
fn sha256(text: &str) -> String {
    let script = format!("printf %s '{text}' | {{ sha256sum 2>/dev/null || shasum -a 256; }}");
    let output = Command::new("sh").args(["-c", &script]).stdin(Stdio::null()).output().expect("a shell");
    String::from_utf8(output.stdout).expect("text").split(' ').next().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn every_service_works_as_a_user_of_its_own() {
    let redis = RedisServer::start_with_acl(&users());
    let url = |user: &str| redis.url_of(user, &password(user));
    let urls = [url("gateway"), url("queue-worker"), url("pubsub-worker")];
    // No CONFIG, which would show the passwords of the server
    assert_core_works(redis, [&urls[0], &urls[1], &urls[2]], "memory").await;
}

#[tokio::test]
async fn no_service_may_empty_list_configure_or_leave_its_keys_and_channels() {
    let redis = RedisServer::start_with_acl(&users());
    let mut admin = redis.connection().await;
    redis::cmd("SET").arg("of_others").arg("x").exec_async(&mut admin).await.expect("redis runs");
    for user in USERS {
        let url = redis.url_of(user, &password(user));
        // It sees no data, so it may choose no database
        let url = if user == "monitoring" { url.replace("/5", "") } else { url };
        let client = redis::Client::open(url).expect("a URL");
        let connected = client.get_multiplexed_async_connection_with_config(&patient_config()).await;
        let mut connection = connected.expect("it may connect");
        for command in FORBIDDEN {
            let mut words = command.split(' ');
            let mut call = redis::cmd(words.next().expect("a command"));
            call.arg(words.collect::<Vec<_>>());
            let refused = call.query_async::<redis::Value>(&mut connection).await;
            let refused = refused.expect_err(&format!("{user} may not {command}"));
            assert_eq!(refused.code(), Some("NOPERM"), "{user} {command}: {refused}");
        }
        if user == "monitoring" {
            let read = redis::cmd("GET").arg("galley:leader").query_async::<redis::Value>(&mut connection).await;
            assert_eq!(read.expect_err("no data").code(), Some("NOPERM"));
            redis::cmd("INFO").exec_async(&mut connection).await.expect("it may look at the server");
            continue;
        }
        // A script of its own can be loaded, and can do nothing that its user may not
        for (script, is_allowed) in [
            ("return redis.call('FLUSHALL')", false),
            ("return redis.call('CONFIG', 'SET', 'maxmemory', '1')", false),
            ("return redis.call('GET', 'of_others')", false),
            ("return redis.call('GET', 'galley:leader')", true),
        ] {
            let sha: String =
                redis::cmd("SCRIPT").arg("LOAD").arg(script).query_async(&mut connection).await.expect("loaded");
            let ran = redis::cmd("EVALSHA").arg(sha).arg(0).query_async::<redis::Value>(&mut connection).await;
            assert_eq!(ran.is_ok(), is_allowed, "{user} {script}: {ran:?}");
        }
    }
    let left: String = redis::cmd("GET").arg("of_others").query_async(&mut admin).await.expect("redis runs");
    assert_eq!(left, "x");
}

#[test]
fn redis_does_not_start_with_the_file_before_passwords_are_filled_in() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/redis.acl");
    let program = std::env::var("GALLEY_TEST_REDIS_SERVER").unwrap_or_else(|_| "redis-server".to_owned());
    let mut command = Command::new(program);
    command.args(["--port", "0", "--save", "", "--aclfile", path]).stdin(Stdio::null()).stdout(Stdio::piped());
    let Ok(output) = command.output() else { return skip("no redis-server") };
    assert!(!output.status.success(), "it runs without passwords");
}
