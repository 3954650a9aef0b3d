//! What keys use, shared by gateways.

use std::time::Duration;

use store::{
    Redis,
    key_usage::{UsageKind, UsageLease},
};

use crate::kit::StoreKit;

#[tokio::test]
async fn gateways_together_lease_no_more_than_a_second_brings() {
    let kit = StoreKit::start();
    let (one, other) = (kit.redis.clone(), Redis::new(&kit.settings.redis).expect("a URL"));
    let mut leased = 0;
    // A rate so low that nothing comes back while the test runs
    let refused = loop {
        for gateway in [&one, &other] {
            match gateway.lease_usage(UsageKind::Requests, "k", 7, 1, 1).await.expect("redis runs") {
                UsageLease::Leased(tokens) => leased += tokens,
                UsageLease::Wait(_) => {}
            }
        }
        if let UsageLease::Wait(wait) = one.lease_usage(UsageKind::Requests, "k", 7, 1, 1).await.expect("redis runs") {
            break wait;
        }
        leased += 1;
        assert!(leased < 30, "no end");
    };
    assert!(refused <= Duration::from_millis(143), "{refused:?}");
    let others = one.lease_usage(UsageKind::Requests, "other", 7, 1, 1).await.expect("redis runs");
    assert_eq!(others, UsageLease::Leased(2), "another key has its own");
}

#[tokio::test]
async fn a_large_body_is_let_in_and_paid_for_later() {
    let kit = StoreKit::start();
    let redis = kit.redis.clone();
    let lease = async |needed| redis.lease_usage(UsageKind::BodyBytes, "k", 1000, needed, 0).await.expect("redis runs");
    assert_eq!(lease(3_600_000).await, UsageLease::Leased(3_600_000));
    let UsageLease::Wait(wait) = lease(1).await else { panic!("in debt") };
    assert!(wait > Duration::from_secs(3500) && wait < Duration::from_hours(1), "{wait:?}");
    // The debt is remembered for as long as it lasts
    let ttl: i64 = testkit::redis::cmd("PTTL")
        .arg("galley:usage:body_bytes:k")
        .query_async(&mut kit.server.connection().await)
        .await
        .expect("redis runs");
    assert!(ttl > 3_500_000, "{ttl}");
}
