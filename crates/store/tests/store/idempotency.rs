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
