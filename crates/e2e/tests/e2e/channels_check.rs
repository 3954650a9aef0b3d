//! What channels promise their readers and subscriptions, while everything breaks. `bench channels-check` is the same for longer,
//! with more of everything.

use e2e::channels_check::{CheckPlan, run};
use testkit::RedisKind;

#[tokio::test(flavor = "multi_thread")]
async fn alone_channels_lose_nothing_whatever_breaks() {
    assert_nothing_is_lost(RedisKind::Server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn alone_channels_on_a_cluster_lose_nothing_whatever_breaks() {
    assert_nothing_is_lost(RedisKind::Cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn alone_channels_behind_sentinels_lose_nothing_whatever_breaks() {
    assert_nothing_is_lost(RedisKind::Sentinels).await;
}

async fn assert_nothing_is_lost(redis: RedisKind) {
    let (seconds, rate, seed) = (7, 300, rand::random());
    let plan = CheckPlan { redis, seconds, rate, sse: 20, ws: 6, channels: 4, gateways: 3, workers: 3, seed };
    let outcome = run(&plan).await.expect("it can be run");
    assert!(outcome.findings.is_empty(), "{plan:?}\n{}\n{outcome:#?}", outcome.findings.join("\n"));
    assert!(
        outcome.acknowledged > 100 && outcome.received > outcome.acknowledged && outcome.reconnects > 0,
        "{outcome:#?}"
    );
    let delivered: Vec<u64> = outcome.subscriptions.iter().map(|subscription| subscription.tally.accepted).collect();
    assert!(delivered.len() == 4 && delivered.iter().all(|count| *count > 100), "{outcome:#?}");
    println!("{plan:?} {outcome:?}");
}
