//! What is kept of a channel, and what subscriptions hold back beyond that.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use common::settings::{ChannelSettings, Settings};
use model::message::Position;
use rand::{Rng, SeedableRng, rngs::StdRng};
use redis::Value;
use store::channels::{SubscriptionLoss, TrimmedChannel};

use crate::{
    channels::{channel, publish},
    kit::StoreKit,
};

const HISTORY: &str = "galley:{ch:c}:m";
const STATE: &str = "galley:{ch:c}:state";

fn settings(limits: &[(&str, u64)]) -> ChannelSettings {
    let variables = limits.iter().map(|(name, value)| (format!("GALLEY__CHANNELS__{name}"), value.to_string()));
    Settings::from_sources(None, variables.collect::<HashMap<_, _>>()).expect("allowed settings").channels
}

async fn trim(kit: &StoreKit, settings: &ChannelSettings) -> TrimmedChannel {
    store::channels::Channels::new(&kit.redis, settings).trim_channel(&channel("c")).await.expect("redis runs")
}

/// Trims until there is nothing more to trim: how many messages went, and what each subscription lost.
async fn trim_all(kit: &StoreKit, settings: &ChannelSettings) -> (u64, BTreeMap<String, u64>) {
    let (mut messages, mut lost) = (0, BTreeMap::new());
    loop {
        let trimmed = trim(kit, settings).await;
        messages += trimmed.trimmed_count;
        for SubscriptionLoss { subscription, lost_count: number } in trimmed.losses {
            *lost.entry(subscription).or_insert(0) += number.expect("a number");
        }
        if !trimmed.has_more {
            return (messages, lost);
        }
    }
}

async fn kept(kit: &StoreKit) -> u64 {
    match kit.redis_command(&["XLEN", HISTORY]).await {
        Value::Int(length) => u64::try_from(length).expect("a length"),
        other => panic!("{other:?}"),
    }
}

async fn add(kit: &StoreKit, position: Position, at: i64) {
    kit.redis_command(&["XADD", HISTORY, &position.to_string(), "b", "x", "a", &at.to_string()]).await;
}

async fn subscribe(kit: &StoreKit, name: &str, after: &str) {
    kit.redis_command(&["XGROUP", "CREATE", HISTORY, &format!("sub:{name}"), after]).await;
    kit.redis_command(&["HSET", STATE, "s", "1"]).await;
}

/// Gives a subscription its next messages, which it has out from then on.
async fn give(kit: &StoreKit, name: &str, count: usize) {
    let group = format!("sub:{name}");
    kit.redis_command(&["XREADGROUP", "GROUP", &group, "x", "COUNT", &count.to_string(), "STREAMS", HISTORY, ">"])
        .await;
}

async fn state(kit: &StoreKit, field: &str) -> Option<String> {
    let mut command = redis::cmd("HGET");
    command.arg(STATE).arg(field).query_async(&mut kit.server.connection().await).await.expect("redis runs")
}

#[tokio::test]
async fn a_history_is_trimmed_by_count_by_age_and_by_bytes() {
    let kit = StoreKit::start();
    let now = kit.channels.server_time().await.expect("redis runs");
    for sequence in 0..500 {
        add(&kit, Position { epoch: 5, sequence }, now - 1_000_000 + i64::try_from(sequence).expect("small") * 1000)
            .await;
    }
    assert_eq!(trim(&kit, &settings(&[])).await, TrimmedChannel::default(), "nothing is too old or too much");
    assert_eq!(trim(&kit, &settings(&[("HISTORY_MAX", 450)])).await.trimmed_count, 50);
    assert_eq!(kept(&kit).await, 450);
    // Those of the first hundred thousand milliseconds, however long it took to add them all
    let since = kit.channels.server_time().await.expect("redis runs") - now;
    let age = 900_500 + u64::try_from(since).expect("a clock that goes on");
    let by_age = trim(&kit, &settings(&[("HISTORY_MAX_AGE_MS", age)])).await;
    assert!((50..=80).contains(&by_age.trimmed_count), "{by_age:?}");
    for _ in 0..300 {
        publish(&kit, &channel("c"), &[b'x'; 1000]).await;
    }
    let limit = 100_000;
    trim_all(&kit, &settings(&[("HISTORY_MAX_BYTES", limit)])).await;
    let info = kit.channels.channel_info(&channel("c")).await.expect("redis runs").expect("a channel");
    assert!(info.bytes <= limit * 2 && info.length > 20, "{info:?}");
    assert!(trim(&kit, &settings(&[("HISTORY_MAX_AGE_MS", 1000)])).await.losses.is_empty());
    // However long it is, the newest message is there to be read
    publish(&kit, &channel("c"), &vec![b'x'; 300_000]).await;
    trim_all(&kit, &settings(&[("HISTORY_MAX_BYTES", limit)])).await;
    assert_eq!(kept(&kit).await, 1);
}

#[tokio::test]
async fn one_call_trims_a_bounded_number_and_says_that_there_is_more() {
    let kit = StoreKit::start();
    let fill = "for i = 1, 25000 do redis.call('XADD', KEYS[1], '5-*', 'b', 'x', 'a', '1') end";
    kit.redis_command(&["EVAL", fill, "1", HISTORY]).await;
    let old = settings(&[("HISTORY_MAX_AGE_MS", 1000)]);
    for (trimmed_count, has_more) in [(10_000, true), (10_000, true), (5000, false), (0, false)] {
        assert_eq!(trim(&kit, &old).await, TrimmedChannel { trimmed_count, has_more, ..TrimmedChannel::default() });
    }
}

#[tokio::test]
async fn a_trimmed_history_is_a_gap_for_a_reader_who_was_behind() {
    let kit = StoreKit::start();
    let mut positions = Vec::new();
    for _ in 0..10 {
        positions.push(publish(&kit, &channel("c"), b"x").await.position);
    }
    trim(&kit, &settings(&[("HISTORY_MAX", 4)])).await;
    let page = kit.channels.read_channel_page(&channel("c"), positions[2], 100).await.expect("redis runs");
    let gap = page.gap(positions[2]).expect("a gap");
    assert_eq!((gap.from, gap.to, gap.count), (positions[2], Some(positions[6]), Some(3)));
    assert_eq!(page.messages.len(), 4);
}

#[tokio::test]
async fn what_a_subscription_needs_stays_under_the_cap_and_what_it_loses_beyond_is_told_once() {
    let kit = StoreKit::start();
    for _ in 0..100 {
        publish(&kit, &channel("c"), b"x").await;
    }
    subscribe(&kit, "slow", "0").await;
    subscribe(&kit, "quick", "$").await;
    give(&kit, "slow", 10).await;
    let limits = settings(&[("HISTORY_MAX", 5)]);
    assert_eq!(trim_all(&kit, &limits).await, (0, BTreeMap::new()), "it has the first ten out and needs the rest");
    let first = kit.channels.read_channel_page(&channel("c"), Position::START, 1).await.expect("redis runs").messages
        [0]
    .position;
    for sequence in 0..4 {
        let done = Position { sequence: first.sequence + sequence, ..first };
        kit.redis_command(&["XACK", HISTORY, "sub:slow", &done.to_string()]).await;
    }
    assert_eq!(trim_all(&kit, &limits).await, (4, BTreeMap::new()), "what it is done with goes");
    // Six that are out and the next fourteen go
    let capped = settings(&[("HISTORY_MAX", 5), ("BACKLOG_MAX_MESSAGES", 76)]);
    assert_eq!(trim_all(&kit, &capped).await, (20, BTreeMap::from([("slow".to_owned(), 20)])));
    assert_eq!(trim_all(&kit, &capped).await, (0, BTreeMap::new()), "told once");
    // It goes on with what is left, and nothing keeps what nobody needs
    give(&kit, "slow", 1000).await;
    kit.redis_command(&["XGROUP", "DESTROY", HISTORY, "sub:slow"]).await;
    assert_eq!(trim_all(&kit, &capped).await, (71, BTreeMap::new()));
}

#[tokio::test]
async fn what_publishing_trims_beyond_the_cap_is_told_by_the_next_look() {
    let kit = StoreKit::with_variables(&[
        ("GALLEY__CHANNELS__HISTORY_MAX", "10"),
        ("GALLEY__CHANNELS__BACKLOG_MAX_MESSAGES", "500"),
    ]);
    publish(&kit, &channel("c"), b"x").await;
    subscribe(&kit, "slow", "0").await;
    assert_eq!(trim_all(&kit, &kit.settings.channels).await, (0, BTreeMap::new()));
    for _ in 0..450 {
        publish(&kit, &channel("c"), b"x").await;
    }
    assert_eq!(kept(&kit).await, 451, "the cap counts, not what is kept without subscriptions");
    for _ in 0..1000 {
        publish(&kit, &channel("c"), b"x").await;
    }
    let left = kept(&kit).await;
    assert!((500..=700).contains(&left), "{left}");
    let (_, lost) = trim_all(&kit, &kit.settings.channels).await;
    assert_eq!((kept(&kit).await, lost), (500, BTreeMap::from([("slow".to_owned(), 951)])));
    // Without a subscription only what is kept anyway stays, and publishing trims to that again
    kit.redis_command(&["XGROUP", "DESTROY", HISTORY, "sub:slow"]).await;
    trim_all(&kit, &kit.settings.channels).await;
    assert_eq!((kept(&kit).await, state(&kit, "s").await, state(&kit, "f").await), (10, None, None));
    for _ in 0..400 {
        publish(&kit, &channel("c"), b"x").await;
    }
    assert!(kept(&kit).await <= 210);
}

#[tokio::test]
async fn a_subscription_that_nobody_noted_is_noted_and_groups_of_others_are_not() {
    let kit = StoreKit::start();
    publish(&kit, &channel("c"), b"x").await;
    kit.redis_command(&["XGROUP", "CREATE", HISTORY, "somebody", "0"]).await;
    trim(&kit, &settings(&[])).await;
    assert_eq!(state(&kit, "s").await, None);
    kit.redis_command(&["XGROUP", "CREATE", HISTORY, "sub:a", "0"]).await;
    trim(&kit, &settings(&[])).await;
    assert_eq!(state(&kit, "s").await.as_deref(), Some("1"));
}

#[tokio::test]
async fn what_a_subscription_still_needs_does_not_expire() {
    let kit = StoreKit::start();
    publish(&kit, &channel("c"), b"x").await;
    let limits = settings(&[("HISTORY_TTL_MS", 600_000)]);
    let soon = async || {
        for key in [HISTORY, STATE] {
            kit.redis_command(&["PEXPIRE", key, "200000"]).await;
        }
        kit.redis_command(&["DEL", "galley:channels"]).await;
        trim(&kit, &limits).await;
        let listed = kit.redis_command(&["ZCARD", "galley:channels"]).await == Value::Int(1);
        let left = [kit.redis_command(&["PTTL", HISTORY]).await, kit.redis_command(&["PTTL", STATE]).await];
        (listed, left.map(|left| matches!(left, Value::Int(ms) if ms > 300_000)))
    };
    assert_eq!(soon().await, (false, [false, false]), "nobody needs it");
    subscribe(&kit, "a", "0").await;
    assert_eq!(soon().await, (true, [true, true]), "not given yet");
    give(&kit, "a", 1).await;
    assert_eq!(soon().await, (true, [true, true]), "out");
    kit.redis_command(&["XGROUP", "DESTROY", HISTORY, "sub:a"]).await;
    subscribe(&kit, "a", "$").await;
    assert_eq!(soon().await, (false, [false, false]), "it has had everything");
}

#[tokio::test]
async fn losses_across_epochs_are_told_as_far_as_they_can_be_known_and_never_made_up() {
    let kit = StoreKit::start();
    let capped = settings(&[("HISTORY_MAX", 1), ("BACKLOG_MAX_MESSAGES", 1)]);
    for sequence in 0..3 {
        add(&kit, Position { epoch: 5, sequence }, 1).await;
    }
    subscribe(&kit, "a", "5-2").await;
    assert_eq!(trim_all(&kit, &capped).await, (2, BTreeMap::new()), "it has had them all");
    add(&kit, Position { epoch: 9, sequence: 0 }, 1).await;
    assert_eq!(trim_all(&kit, &capped).await, (1, BTreeMap::new()), "what it needs is there");
    // Emptied, and then another epoch: nothing in between
    kit.redis_command(&["XGROUP", "SETID", HISTORY, "sub:a", "9-0"]).await;
    kit.redis_command(&["XTRIM", HISTORY, "MAXLEN", "0"]).await;
    assert_eq!(trim_all(&kit, &capped).await, (0, BTreeMap::new()));
    add(&kit, Position { epoch: 12, sequence: 0 }, 1).await;
    add(&kit, Position { epoch: 12, sequence: 1 }, 1).await;
    assert_eq!(trim_all(&kit, &capped).await, (1, BTreeMap::from([("a".to_owned(), 1)])));
    // Somebody trims by hand beyond the end of an epoch: how many there were nobody knows
    add(&kit, Position { epoch: 20, sequence: 7 }, 1).await;
    kit.redis_command(&["XTRIM", HISTORY, "MAXLEN", "1"]).await;
    let told = trim(&kit, &settings(&[])).await.losses;
    assert_eq!(told, [SubscriptionLoss { subscription: "a".to_owned(), lost_count: None }]);
    assert_eq!(trim(&kit, &settings(&[])).await.losses, []);
}

/// What should be left and who should have lost what.
struct RetentionCase {
    all: Vec<Position>,
    messages: usize,
    age: usize,
    cap: usize,
    /// For each: messages given to it, and those of them that it is done with.
    subscriptions: Vec<(usize, BTreeSet<usize>)>,
}

impl RetentionCase {
    fn random(random: &mut StdRng) -> Self {
        let mut all = Vec::new();
        for epoch in [3, 7, 8] {
            all.extend((0..random.random_range(0..12)).map(|sequence| Position { epoch, sequence }));
        }
        let subscriptions = (0..random.random_range(0..3)).map(|_| {
            let given = random.random_range(0..=all.len());
            (given, (0..given).filter(|_| random.random_bool(0.7)).collect())
        });
        let subscriptions = subscriptions.collect();
        let [messages, age, cap] = [1..20, 0..20, 1..30].map(|range| random.random_range(range));
        Self { all, messages, age, cap, subscriptions }
    }

    fn needs(&self, subscription: usize, index: usize) -> bool {
        let (given, done) = &self.subscriptions[subscription];
        index >= *given || !done.contains(&index)
    }

    /// How many go, and what each subscription loses.
    fn expected(&self) -> (u64, BTreeMap<String, u64>) {
        let length = self.all.len();
        let by_age = if self.age == 0 { 0 } else { length.saturating_sub(self.age) };
        let own = length.saturating_sub(self.messages).max(by_age);
        let numbers = 0..self.subscriptions.len();
        // What is beyond the cap goes, and then whatever nobody needs
        let forced = length.saturating_sub(self.cap);
        let needed = numbers.clone().filter_map(|s| (forced..length).find(|index| self.needs(s, *index))).min();
        let cut = own.min(needed.unwrap_or(length));
        let lost = numbers.map(|s| (format!("s{s}"), (0..cut).filter(|index| self.needs(s, *index)).count()));
        let lost = lost.filter(|(_, lost)| *lost > 0).map(|(name, lost)| (name, u64::try_from(lost).expect("small")));
        (u64::try_from(cut).expect("small"), lost.collect())
    }

    async fn build(&self, kit: &StoreKit) {
        kit.redis_command(&["FLUSHALL"]).await;
        let now = kit.channels.server_time().await.expect("redis runs");
        for (index, position) in self.all.iter().enumerate() {
            let age = i64::try_from(self.all.len() - index).expect("small") * 100_000 - 50_000;
            add(kit, *position, now - age).await;
        }
        for (number, (given, done)) in self.subscriptions.iter().enumerate() {
            let name = format!("s{number}");
            subscribe(kit, &name, "0").await;
            if *given > 0 {
                give(kit, &name, *given).await;
            }
            for index in done {
                kit.redis_command(&["XACK", HISTORY, &format!("sub:{name}"), &self.all[*index].to_string()]).await;
            }
        }
    }
}

#[tokio::test]
async fn the_limits_together_trim_what_a_model_says() {
    let kit = StoreKit::start();
    let (mut random, mut overtaken, mut held) = (StdRng::seed_from_u64(7), 0, 0);
    for round in 0..300 {
        let case = RetentionCase::random(&mut random);
        if case.all.is_empty() {
            continue;
        }
        case.build(&kit).await;
        let age = u64::try_from(case.age).expect("small") * 100_000;
        let [messages, cap] = [case.messages, case.cap].map(|number| u64::try_from(number).expect("small"));
        let limits = [("HISTORY_MAX", messages), ("HISTORY_MAX_AGE_MS", age), ("BACKLOG_MAX_MESSAGES", cap)];
        let expected = case.expected();
        assert_eq!(trim_all(&kit, &settings(&limits)).await, expected, "round {round}");
        overtaken += usize::from(!expected.1.is_empty());
        held += usize::from(expected.0 == 0);
    }
    assert!(overtaken > 20 && held > 20, "the cases were worth it: {overtaken} {held}");
}

#[tokio::test]
async fn the_maintenance_sees_to_every_channel() {
    let kit = StoreKit::with_variables(&[
        ("GALLEY__CHANNELS__HISTORY_MAX_AGE_MS", "1000"),
        ("GALLEY__MAINTENANCE__HISTORY_TRIM_MS", "50"),
    ]);
    for name in ["a", "b", "c"] {
        publish(&kit, &channel(name), b"x").await;
    }
    let maintenance = kit.start_maintenance();
    testkit::eventually("all histories are empty", || async {
        for name in ["a", "b", "c"] {
            if kit.redis_command(&["XLEN", &format!("galley:{{ch:{name}}}:m")]).await != Value::Int(0) {
                return None;
            }
        }
        Some(())
    })
    .await;
    maintenance.stop().await;
}
