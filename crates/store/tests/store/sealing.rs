//! Sealed data: moved, changed, and without its key. What Redis holds of every kind is checked from outside, in `e2e`.

use std::{collections::HashMap, time::Duration};

use common::name::ChannelName;
use model::{
    MemberId, MemberInfo,
    message::{NewMessage, Position},
};
use redis::Value;
use store::{StoreError, channels::ChannelPresence, sealing::OpenError};
use tempfile::TempDir;
use testkit::eventually;
use tokio_util::sync::CancellationToken;

use crate::kit::{JOB_BODY, StoreKit, consumer};

const KEYS_FILE: &str = "GALLEY__ENCRYPTION__KEYS_FILE";
const OLD: &str = "old = \"MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=\"\n";
const NEW: &str = "new = \"YWJjZGVmZ2hpamtsbW5vcHFyc3R1dnd4eXphYmNkZWY=\"\n";

struct KeyFiles(TempDir);

impl KeyFiles {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    fn write(&self, current: &str, keys: &[&str]) -> String {
        let path = self.0.path().join(format!("{current}-{}.toml", keys.len()));
        let fingerprint = "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDI=";
        let text = format!("current = \"{current}\"\nfingerprint_key = \"{fingerprint}\"\n[keys]\n{}", keys.concat());
        std::fs::write(&path, text).expect("a file");
        path.into_os_string().into_string().expect("UTF-8")
    }
}

/// Another process on the same Redis, with other keys.
fn beside(kit: &StoreKit, keys: &str) -> StoreKit {
    StoreKit::with_variables(&[("GALLEY__REDIS__URL", &kit.server.url()), (KEYS_FILE, keys)])
}

fn sealed_error<T>(outcome: Result<T, StoreError>) -> OpenError {
    match outcome {
        Err(StoreError::Sealed(error)) => error,
        Err(error) => panic!("another error: {error}"),
        Ok(_) => panic!("it was opened"),
    }
}

#[tokio::test]
async fn a_result_that_was_moved_to_another_job_or_changed_is_refused() {
    let files = KeyFiles::new();
    let kit = StoreKit::with_variables(&[(KEYS_FILE, &files.write("new", &[NEW]))]);
    let consumer = consumer();
    let (mut ids, mut results) = (Vec::new(), Vec::new());
    for result in ["\"mine\"", "\"yours\""] {
        let id = kit.enqueue(JOB_BODY).await;
        let claimed = kit.claim_one(&consumer).await;
        kit.complete(&consumer, &claimed, result).await;
        assert_eq!(kit.job(id).await["result"].to_string(), result);
        results.push(format!("galley:{{default}}:r:{id}"));
        ids.push(id);
    }
    let Value::BulkString(other) = kit.redis_command(&["GET", &results[1]]).await else { panic!("a result") };
    let other = String::from_utf8(other).expect("text");
    assert!(!other.contains("yours") && !other.contains("test.echo"), "{other}");
    kit.redis_command(&["SET", &results[0], &other]).await;
    assert_eq!(sealed_error(kit.jobs.locate(ids[0]).await), OpenError::Refused("new".to_owned()));
    let last = other.chars().last().expect("not empty");
    let changed = format!("{}{}", &other[..other.len() - 1], if last == 'A' { 'Q' } else { 'A' });
    kit.redis_command(&["SET", &results[1], &changed]).await;
    sealed_error(kit.jobs.locate(ids[1]).await);
}

#[tokio::test]
async fn what_a_member_says_of_itself_is_sealed_and_said_again_changes_nothing() {
    let files = KeyFiles::new();
    let kit = StoreKit::with_variables(&[(KEYS_FILE, &files.write("new", &[NEW]))]);
    let channel: ChannelName = "c".parse().expect("a name");
    let gateway = |kit: &StoreKit| ChannelPresence::start(&kit.channels, &kit.notifier, CancellationToken::new()).0;
    let (first, second) = (gateway(&kit), gateway(&kit));
    let stranger = beside(&kit, &files.write("old", &[OLD]));
    let (member, info) =
        ("ada".parse::<MemberId>().expect("an id"), MemberInfo::from_stored("{\"name\":\"Countess\"}"));
    let mut guards = Vec::new();
    for presence in [&first, &second, &first] {
        let (guard, joined) = presence.join(&channel, member.clone(), info.clone()).await;
        joined.expect("redis runs").expect("there is room");
        guards.push(guard);
    }
    let shown = second.members(&channel).await.expect("redis runs");
    assert_eq!((shown.len(), &shown[0].id, &shown[0].info), (1, &member, &info));
    let hidden = gateway(&stranger).members(&channel).await.expect("redis runs");
    assert_eq!((hidden.len(), &hidden[0].info), (1, &MemberInfo::default()), "there, and nobody knows what it says");
    let keys = kit.redis_keys().await;
    let key = keys.iter().find(|key| key.ends_with(":members")).expect("the members");
    let stored: HashMap<String, String> =
        redis::from_redis_value(kit.redis_command(&["HGETALL", key]).await).expect("a hash");
    assert!(!stored["m:ada"].contains("Countess"), "{stored:?}");
    let joined_at: u64 = stored["m:ada"].split(' ').next().expect("a time").parse().expect("a number");
    assert_eq!(stored["v"].parse(), Ok(joined_at + 1), "one event: it joined");
    // Other info is another event
    let other = MemberInfo::from_stored("{\"name\":\"Ada\"}");
    guards.push(first.join(&channel, member.clone(), other.clone()).await.0);
    assert_eq!(second.members(&channel).await.expect("redis runs")[0].info, other);
}

#[tokio::test]
async fn arguments_that_were_moved_to_another_job_are_not_run() {
    let files = KeyFiles::new();
    let kit = StoreKit::with_variables(&[(KEYS_FILE, &files.write("new", &[NEW]))]);
    kit.enqueue(r#"{"type":"mail.send","args":["theirs"]}"#).await;
    let stream = "galley:{default}:s:0";
    let entries = kit.redis_command(&["XRANGE", stream, "-", "+"]).await;
    let entries: Vec<(String, Vec<String>)> = redis::from_redis_value(entries).expect("entries");
    let (_, fields) = &entries[0];
    let envelope = fields.iter().position(|field| field == "e").expect("an envelope") + 1;
    // The arguments of the first job under the id of another
    kit.redis_command(&["XADD", stream, "*", "i", "7", "e", &fields[envelope]]).await;
    let claimed = kit.claim(&consumer(), 10).await;
    assert_eq!(claimed.len(), 1, "only the job that they belong to");
}

#[tokio::test]
async fn a_job_whose_key_a_process_lacks_waits_until_one_has_it() {
    let files = KeyFiles::new();
    let kit = StoreKit::with_variables(&[(KEYS_FILE, &files.write("new", &[OLD, NEW]))]);
    let id = kit.enqueue(JOB_BODY).await;
    let without = beside(&kit, &files.write("old", &[OLD]));
    let lease = Duration::from_secs(1);
    assert!(without.pull(Some(lease)).await.is_none(), "it cannot be opened there");
    assert_eq!(sealed_error(without.jobs.locate(id).await), OpenError::UnknownKey("new".to_owned()));
    let maintenance = kit.start_maintenance();
    eventually("it is available again", || async { (kit.state(id).await == "available").then_some(()) }).await;
    let again = kit.pull(None).await.expect("the job");
    assert_eq!((again.job.id, again.job.history.crashes), (id, 1));
    maintenance.stop().await;
}

#[tokio::test]
async fn a_leader_without_the_key_leaves_such_a_job_where_it_is() {
    let files = KeyFiles::new();
    let kit = StoreKit::with_variables(&[(KEYS_FILE, &files.write("new", &[OLD, NEW]))]);
    let without = beside(&kit, &files.write("old", &[OLD]));
    let id = kit.enqueue(JOB_BODY).await;
    let claimed = kit.pull(Some(Duration::from_secs(1))).await.expect("the job");
    let attempt = format!("0:{}", claimed.entry);
    let expiry = async || {
        let score = kit.redis_command(&["ZSCORE", "galley:{default}:leases", &attempt]).await;
        redis::from_redis_value::<f64>(score).expect("the lease is still there")
    };
    // Before there is a leader, which moves it a minute on
    let first = expiry().await;
    let maintenance = without.start_maintenance();
    eventually("the leader looked at it", || async { (expiry().await > first + 10_000.0).then_some(()) }).await;
    assert_eq!(kit.state(id).await, "active");
    maintenance.stop().await;
}

#[tokio::test]
async fn uniqueness_holds_with_keys_and_its_fingerprint_cannot_be_guessed() {
    let body = r#"{"type":"a.b","args":[7],"unique":{"keys":["args"]}}"#;
    let key_of = |keys: Vec<String>| keys.into_iter().find(|key| key.contains(":unique:")).expect("a uniqueness");
    let plain = StoreKit::start();
    plain.enqueue(body).await;
    let files = KeyFiles::new();
    let kit = StoreKit::with_variables(&[(KEYS_FILE, &files.write("old", &[OLD]))]);
    let id = kit.enqueue(body).await;
    assert_ne!(key_of(kit.redis_keys().await), key_of(plain.redis_keys().await));
    // The key that seals is replaced meanwhile
    let later = beside(&kit, &files.write("new", &[OLD, NEW]));
    assert!(later.try_enqueue(body).await.is_err(), "there is one");
    let consumer = consumer();
    let claimed = later.claim_one(&consumer).await;
    later.complete(&consumer, &claimed, "1").await;
    assert_eq!(later.state(id).await, "completed");
    assert!(later.try_enqueue(body).await.is_ok(), "it is free again");
}

#[tokio::test]
async fn what_was_stored_before_there_were_keys_is_read_or_refused_as_the_settings_say() {
    let plain = StoreKit::start();
    let id = plain.enqueue(JOB_BODY).await;
    let channel: ChannelName = "news".parse().expect("a name");
    let message = NewMessage::plain(b"hello");
    plain.channels.publish(&channel, &message).await.expect("redis runs").expect("published");
    let files = KeyFiles::new();
    let keys = files.write("new", &[NEW]);
    let kit = beside(&plain, &keys);
    assert_eq!(kit.job(id).await["args"].to_string(), "[1]");
    let read = async |kit: &StoreKit| {
        let page = kit.channels.read_channel_page(&channel, Position::START, 10).await.expect("redis runs");
        page.messages.into_iter().map(|message| message.body).collect::<Vec<_>>()
    };
    assert_eq!(read(&kit).await, [b"hello"]);
    let strict = StoreKit::with_variables(&[
        ("GALLEY__REDIS__URL", &plain.server.url()),
        (KEYS_FILE, &keys),
        ("GALLEY__ENCRYPTION__ACCEPT_PLAIN", "false"),
    ]);
    assert_eq!(sealed_error(strict.jobs.locate(id).await), OpenError::Plain);
    assert!(read(&strict).await.is_empty());
}
