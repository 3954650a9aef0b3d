use std::{sync::Arc, time::Duration};

use store::jobs::Claimant;
use testkit::eventually;

use crate::kit::{JOB_BODY, StoreKit, consumer, normal_priority, queue};

#[tokio::test]
async fn two_workers_never_get_the_same_job() {
    let kit = StoreKit::start();
    for _ in 0..200 {
        kit.enqueue(JOB_BODY).await;
    }
    let (a, b) = (consumer(), consumer());
    let mut seen = std::collections::HashSet::new();
    loop {
        let (first, second) = tokio::join!(kit.claim(&a, 7), kit.claim(&b, 7));
        if first.is_empty() && second.is_empty() {
            break;
        }
        for claimed in first.into_iter().chain(second) {
            assert!(seen.insert(claimed.job.id));
        }
    }
    assert_eq!(seen.len(), 200);
}

#[tokio::test]
async fn a_claim_on_a_queue_that_does_not_exist_finds_and_writes_nothing() {
    let kit = StoreKit::start();
    assert!(kit.pull(None).await.is_none());
    assert!(kit.redis_keys().await.is_empty());
}

#[tokio::test]
async fn a_list_of_streams_that_is_old_is_read_again() {
    let kit = StoreKit::start();
    kit.enqueue(JOB_BODY).await;
    let consumer = consumer();
    let worker = "w".parse().expect("a name");
    let by = Claimant::Worker { consumer: &consumer, worker: &worker };
    let mut known = kit.jobs.priorities(&queue()).await.expect("redis runs");
    kit.enqueue(r#"{"type":"a","args":[],"priority":50}"#).await;
    let claimed = kit.jobs.claim(&queue(), &mut known, 1, by).await.expect("redis runs").jobs;
    assert_eq!(claimed[0].job.priority.get(), 50);
    assert_eq!(known.len(), 2);
}

#[tokio::test]
async fn a_blocked_claim_gets_a_job_the_moment_it_arrives() {
    let kit = Arc::new(StoreKit::start());
    kit.jobs.open_queue(&queue()).await.expect("redis runs");
    let blocked = {
        let kit = kit.clone();
        tokio::spawn(async move {
            let mut connection = kit.redis.open_dedicated(Duration::from_mins(1)).await.expect("redis runs");
            let streams = [(queue(), normal_priority())];
            kit.jobs.claim_blocking(&mut connection, &streams, &consumer(), Duration::from_mins(1)).await
        })
    };
    eventually("somebody blocks", || async {
        let info = kit.redis_command(&["INFO", "clients"]).await;
        format!("{info:?}").contains("blocked_clients:1").then_some(())
    })
    .await;
    let id = kit.enqueue(JOB_BODY).await;
    let claimed = blocked.await.expect("no panic").expect("redis runs");
    assert_eq!(claimed.iter().map(|claimed| claimed.job.id).collect::<Vec<_>>(), [id]);
}

#[tokio::test]
async fn a_worker_finds_what_was_handed_to_it_in_an_answer_it_never_got() {
    let kit = StoreKit::start();
    let id = kit.enqueue(JOB_BODY).await;
    let consumer = consumer();
    // The answer is thrown away
    drop(kit.claim_one(&consumer).await);
    let own = kit.jobs.recover_claims(&queue(), normal_priority(), &consumer, |_| true).await.expect("redis runs");
    assert_eq!(own.iter().map(|claimed| claimed.job.id).collect::<Vec<_>>(), [id]);
    // What is recorded meanwhile is not taken up again
    let looked_at = std::cell::Cell::new(0);
    assert_eq!(kit.complete(&consumer, &own[0], "1").await, store::jobs::Settled::Done);
    let count = |_| looked_at.replace(looked_at.get() + 1) < usize::MAX;
    assert!(
        kit.jobs.recover_claims(&queue(), normal_priority(), &consumer, count).await.expect("redis runs").is_empty()
    );
}

#[tokio::test]
async fn a_worker_finds_its_own_jobs_page_by_page() {
    let kit = StoreKit::start();
    for _ in 0..50 {
        kit.enqueue(JOB_BODY).await;
    }
    let consumer = consumer();
    let held = kit.claim(&consumer, 50).await;
    let known = held[7].entry;
    let own = kit
        .jobs
        .recover_claims(&queue(), normal_priority(), &consumer, |entry| entry != known)
        .await
        .expect("redis runs");
    assert_eq!(own.len(), 49);
}

#[tokio::test]
async fn limits_that_are_no_numbers_do_not_keep_pulled_jobs_from_getting_a_lease() {
    let kit = StoreKit::start();
    kit.enqueue(JOB_BODY).await;
    for broken in [["v", "abc"], ["t", "x"]] {
        let entry = [&["XADD", "galley:{default}:s:0", "*", "i", "1", "e", r#"{"type":"a","args":[]}"#], &broken[..]];
        kit.redis_command(&entry.concat()).await;
    }
    let by = Claimant::Pull { worker: None, lease: None };
    let claimed = kit.jobs.claim(&queue(), &mut Vec::new(), 10, by).await.expect("redis runs").jobs;
    assert_eq!(claimed.len(), 3);
    assert_eq!(kit.redis_command(&["ZCARD", "galley:{default}:leases"]).await, redis::Value::Int(3));
}

#[tokio::test]
async fn an_entry_that_cannot_be_read_does_not_keep_the_others_from_being_worked_on() {
    let kit = StoreKit::start();
    let first = kit.enqueue(JOB_BODY).await;
    for broken in [&["nonsense", "1"][..], &["i", "zz", "e", "{}"], &["i", "1"], &["i", "1", "e", "{}", "h", "[]"]] {
        kit.redis_command(&[&["XADD", "galley:{default}:s:0", "*"], broken].concat()).await;
    }
    let mut binary = redis::cmd("XADD");
    binary.arg("galley:{default}:s:0").arg("*").arg("i").arg("1").arg("e").arg(b"\xff\xfe").arg(b"\xff").arg("x");
    binary.exec_async(&mut kit.server.connection().await).await.expect("redis runs");
    let last = kit.enqueue(JOB_BODY).await;
    let claimed: Vec<_> = kit.claim(&consumer(), 10).await.into_iter().map(|claimed| claimed.job.id).collect();
    assert_eq!(claimed, [first, last]);
}

#[tokio::test]
async fn an_active_job_shows_who_has_it_and_since_when() {
    let kit = StoreKit::start();
    let id = kit.enqueue(JOB_BODY).await;
    let worker = "puller-1".parse().expect("a name");
    let by = Claimant::Pull { worker: Some(&worker), lease: None };
    kit.jobs.claim(&queue(), &mut Vec::new(), 1, by).await.expect("redis runs");
    let job = kit.job(id).await;
    assert_eq!(
        (job["state"].as_str(), job["attempt"].as_u64(), job["worker_id"].as_str()),
        (Some("active"), Some(1), Some("puller-1"))
    );
    assert!(job["started_at"].is_string());
    assert_eq!(job, kit.job(id).await, "a second look shows the same");
}
