//! Who is present on channels, at several gateways.

use std::collections::BTreeSet;

use model::{MemberId, MemberInfo};
use store::channels::{ChannelPresence, MemberGuard, PresenceEvent, TooManyMembers, WatchGuard};
use testkit::eventually;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{channels::channel, kit::StoreKit};

/// The shortest lease, and members that leave at once.
const SOON: [(&str, &str); 2] =
    [("GALLEY__CHANNELS__PRESENCE_TTL_MS", "3000"), ("GALLEY__CHANNELS__PRESENCE_GRACE_MS", "0")];

fn gateway(kit: &StoreKit) -> (ChannelPresence, CancellationToken) {
    let stop = CancellationToken::new();
    (ChannelPresence::start(&kit.channels, &kit.notifier, stop.clone()).0, stop)
}

fn id(text: &str) -> MemberId {
    text.parse().expect("an id")
}

async fn join(presence: &ChannelPresence, member: &str, info: &str) -> MemberGuard {
    let (guard, joined) = presence.join(&channel("c"), id(member), MemberInfo::from_stored(info)).await;
    joined.expect("redis runs").expect("there is room");
    guard
}

async fn number(kit: &StoreKit, words: &[&str]) -> i64 {
    redis::from_redis_value(kit.redis_command(words).await).expect("a number")
}

async fn members(presence: &ChannelPresence) -> BTreeSet<String> {
    let members = presence.members(&channel("c")).await.expect("redis runs");
    members.iter().map(|member| format!("{} {}", member.id, member.info.as_stored())).collect()
}

struct Watcher {
    events: mpsc::Receiver<PresenceEvent>,
    _guard: WatchGuard,
}

impl Watcher {
    fn new(presence: &ChannelPresence) -> Self {
        let (sender, events) = mpsc::channel(64);
        Self { events, _guard: presence.watch(&channel("c"), sender) }
    }

    /// The kind of the next event, and of whom it is.
    async fn next(&mut self) -> String {
        let event = tokio::time::timeout(testkit::TEST_TIMEOUT, self.events.recv()).await.expect("in time");
        let event = event.expect("it goes on");
        let json: serde_json::Value = serde_json::from_str(&event.json).expect("JSON");
        let names = |member: &serde_json::Value| member["member"].as_str().expect("text").to_owned();
        let all = json["members"].as_array().map(|all| all.iter().map(names).collect::<Vec<_>>().join(","));
        format!("{} {}", event.kind, all.unwrap_or_else(|| names(&json)))
    }

    async fn expect(&mut self, events: &[&str]) {
        for event in events {
            assert_eq!(self.next().await, *event);
        }
    }
}

#[tokio::test]
async fn a_member_counts_once_at_several_gateways_and_leaves_with_its_last_connection() {
    let kit = StoreKit::with_variables(&SOON);
    let ((one, _), (other, _)) = (gateway(&kit), gateway(&kit));
    let mut watchers = [Watcher::new(&one), Watcher::new(&other)];
    for watcher in &mut watchers {
        watcher.expect(&["members "]).await;
    }
    let guards = [join(&one, "a", "1").await, join(&one, "a", "1").await, join(&other, "a", "1").await];
    let b = join(&other, "b", "").await;
    assert_eq!(members(&one).await, BTreeSet::from(["a 1".to_owned(), "b ".to_owned()]));
    let again = join(&other, "a", "2").await;
    for watcher in &mut watchers {
        watcher.expect(&["join a", "join b", "update a"]).await;
    }
    let mut late = Watcher::new(&one);
    late.expect(&["members a,b"]).await;
    guards.into_iter().for_each(drop);
    b.leave();
    for watcher in watchers.iter_mut().chain([&mut late]) {
        watcher.expect(&["leave b"]).await;
    }
    again.leave();
    for watcher in &mut watchers {
        watcher.expect(&["leave a"]).await;
    }
    assert!(members(&other).await.is_empty());
    assert!(number(&kit, &["PTTL", "galley:{ch:c}:members"]).await > 0, "it is not kept for ever");
}

#[tokio::test]
async fn members_of_a_gateway_that_stops_leave_and_those_that_are_elsewhere_stay() {
    let kit = StoreKit::with_variables(&SOON);
    let ((one, _), (other, stop)) = (gateway(&kit), gateway(&kit));
    let mut watcher = Watcher::new(&one);
    watcher.expect(&["members "]).await;
    let guards = [join(&other, "a", "").await, join(&other, "b", "").await];
    let _stays = join(&one, "b", "").await;
    stop.cancel();
    watcher.expect(&["join a", "join b", "leave a"]).await;
    drop(guards);
    assert_eq!(members(&one).await, BTreeSet::from(["b ".to_owned()]));
}

#[tokio::test]
async fn what_redis_loses_is_written_again_and_what_pub_sub_loses_is_read_again() {
    let kit = StoreKit::with_variables(&SOON);
    let ((one, _), (other, _)) = (gateway(&kit), gateway(&kit));
    let mut watcher = Watcher::new(&other);
    watcher.expect(&["members "]).await;
    let _a = join(&one, "a", "7").await;
    watcher.expect(&["join a"]).await;
    for keys in [
        &["galley:{ch:c}:members"][..],
        &["galley:{ch:c}:gateways"],
        &["galley:{ch:c}:members", "galley:{ch:c}:gateways"],
    ] {
        kit.redis_command(&[&["DEL"], keys].concat()).await;
        let all = BTreeSet::from(["a 7".to_owned()]);
        eventually("it is there again", async || {
            let is_leased = number(&kit, &["ZCARD", "galley:{ch:c}:gateways"]).await == 1;
            (is_leased && members(&one).await == all).then_some(())
        })
        .await;
    }
    // An event that nobody is told
    let members_key = "galley:{ch:c}:members";
    kit.redis_command(&["HSET", members_key, "m:silent", "1000 ", "c:silent", "1"]).await;
    kit.redis_command(&["HINCRBY", members_key, "v", "1"]).await;
    while watcher.next().await != "join silent" {}
}

#[tokio::test]
async fn a_channel_has_so_many_members_and_no_more() {
    let variables = [SOON[0], SOON[1], ("GALLEY__CHANNELS__PRESENCE_MAX_MEMBERS", "2")];
    let kit = StoreKit::with_variables(&variables);
    let (one, _) = gateway(&kit);
    let guards = [join(&one, "a", "").await, join(&one, "b", "").await];
    let (_refused, joined) = one.join(&channel("c"), id("c"), MemberInfo::default()).await;
    assert_eq!(joined.expect("redis runs"), Err(TooManyMembers { max: 2 }));
    let _again = join(&one, "a", "changed").await;
    assert_eq!(members(&one).await, BTreeSet::from(["a changed".to_owned(), "b ".to_owned()]));
    guards.into_iter().for_each(MemberGuard::leave);
    // The refused one has a connection still, so it joins when there is room
    eventually("there is room", async || {
        (members(&one).await == BTreeSet::from(["a changed".to_owned(), "c ".to_owned()])).then_some(())
    })
    .await;
    // Members of gateways that are gone make room at once
    kit.redis_command(&["DEL", "galley:{ch:d}:members", "galley:{ch:d}:gateways"]).await;
    let dead = "0".repeat(32);
    kit.redis_command(&["ZADD", "galley:{ch:d}:gateways", "1", &dead]).await;
    for member in ["x", "y"] {
        let fields = [format!("m:{member}"), format!("c:{member}"), format!("h:{dead}:{member}")];
        let [about, count, held] = &fields;
        kit.redis_command(&["HSET", "galley:{ch:d}:members", about, "1 ", count, "1", held, "1", "n", "2"]).await;
    }
    assert_eq!(one.members(&channel("d")).await.expect("redis runs"), []);
    let (_guard, joined) = one.join(&channel("d"), id("z"), MemberInfo::default()).await;
    assert_eq!(joined.expect("redis runs"), Ok(()));
    let there = one.members(&channel("d")).await.expect("redis runs");
    assert_eq!(there.iter().map(|member| member.id.as_str()).collect::<Vec<_>>(), ["z"]);
}
