use std::time::Duration;

use store::idempotency::{IdempotencyStatus, IdempotentRequest};

use crate::kit::StoreKit;

const TTL: Duration = Duration::from_mins(1);

fn request() -> IdempotentRequest {
    IdempotentRequest { fingerprint: "f".repeat(64), content_hash: "c".repeat(64) }
}

async fn begin(kit: &StoreKit) -> u128 {
    match kit.redis.begin_idempotent_request(&request(), TTL).await.expect("redis runs") {
        IdempotencyStatus::Started { seed } => seed,
        other => panic!("{other:?}"),
    }
}

async fn refuse(kit: &StoreKit, seed: u128) {
    kit.redis.forget_idempotent_request(&request(), seed).await.expect("redis runs");
}

#[tokio::test]
async fn overlapping_requests_with_one_key_have_one_seed_though_the_first_is_refused() {
    let kit = StoreKit::start();
    let (first, second) = (begin(&kit).await, begin(&kit).await);
    refuse(&kit, first).await;
    // The second may have made a job by now, whose id follows from its seed
    let third = begin(&kit).await;
    assert_eq!((second, third), (first, first), "all make the same job");
    kit.redis.save_idempotent_answer(&request(), second, TTL, 201, "made").await.expect("redis runs");
    refuse(&kit, third).await;
    let known = kit.redis.begin_idempotent_request(&request(), TTL).await.expect("redis runs");
    assert_eq!(known, IdempotencyStatus::Answered { status: 201, body: "made".to_owned() });
}

#[tokio::test]
async fn a_key_is_free_again_when_all_requests_with_it_were_refused_and_not_when_one_broke_off() {
    let kit = StoreKit::start();
    let (first, second) = (begin(&kit).await, begin(&kit).await);
    refuse(&kit, first).await;
    refuse(&kit, second).await;
    assert!(kit.redis_keys().await.is_empty());
    let (broken_off, refused) = (begin(&kit).await, begin(&kit).await);
    refuse(&kit, refused).await;
    assert_eq!(begin(&kit).await, broken_off, "it may have made something");
}

#[tokio::test]
async fn a_request_that_is_repeated_is_known_for_as_long_as_one_that_begins() {
    let kit = StoreKit::start();
    let seed = begin(&kit).await;
    let keys = kit.redis_keys().await;
    let ttl = async || {
        let left = kit.redis_command(&["PTTL", &keys[0]]).await;
        redis::from_redis_value::<u64>(left).expect("a TTL")
    };
    // As if it had begun when Redis was nearly full
    kit.redis_command(&["PEXPIRE", &keys[0], "20000"]).await;
    assert_eq!(begin(&kit).await, seed);
    assert!(ttl().await > 20_000);
    kit.redis_command(&["PEXPIRE", &keys[0], "3600000"]).await;
    assert_eq!(begin(&kit).await, seed);
    assert!(ttl().await > 600_000, "it is not shortened");
}
