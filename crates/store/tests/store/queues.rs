use common::name::QueueName;
use model::job::{JobState, RetryAdvice};
use store::jobs::{EnqueueRefusal, PurgeRequest};
use testkit::eventually;

use crate::kit::{JOB_BODY, StoreKit, consumer, failure, fence, queue};

const SCHEDULED: &str = r#"{"type":"a","args":[],"scheduled_at":"+PT1H"}"#;
const RETRIED: &str = r#"{"type":"a","args":[],"retry":{"initial_interval":"PT5H","max_interval":"PT5H"}}"#;

#[tokio::test]
async fn a_paused_queue_hands_out_nothing_and_still_takes_jobs() {
    let kit = StoreKit::start();
    kit.jobs.set_queue_paused(&queue(), true).await.expect("redis runs").expect("room");
    kit.enqueue(JOB_BODY).await;
    let worker = consumer();
    assert!(kit.claim(&worker, 1).await.is_empty());
    kit.jobs.set_queue_paused(&queue(), false).await.expect("redis runs").expect("room");
    assert_eq!(kit.claim(&worker, 1).await.len(), 1);
}

#[tokio::test]
async fn a_closed_queue_takes_no_jobs_and_works_off_those_it_has() {
    let kit = StoreKit::start();
    kit.enqueue(JOB_BODY).await;
    kit.jobs.set_queue_closed(&queue(), true).await.expect("redis runs").expect("room");
    eventually("new jobs are refused", || async {
        (kit.try_enqueue(SCHEDULED).await.map(drop) == Err(EnqueueRefusal::QueueClosed)).then_some(())
    })
    .await;
    assert_eq!(kit.claim(&consumer(), 9).await.len(), 1);
}

#[tokio::test]
async fn a_purge_cancels_what_it_is_asked_to_and_says_whether_there_is_more() {
    let kit = StoreKit::start();
    for body in [JOB_BODY, JOB_BODY, JOB_BODY, SCHEDULED, r#"{"type":"a","args":[],"pending":true}"#] {
        kit.enqueue(body).await;
    }
    let worker = consumer();
    kit.claim_one(&worker).await;
    let purge = |state, limit| PurgeRequest { states: vec![state], limit, after: None };
    let purged = kit.jobs.purge(&queue(), &purge(JobState::Available, 1)).await.expect("redis runs");
    assert_eq!((purged.count, purged.has_more), (1, true));
    let purged = kit.jobs.purge(&queue(), &purge(JobState::Available, 5)).await.expect("redis runs");
    assert_eq!((purged.count, purged.has_more), (1, false));
    let stats = kit.jobs.queue_stats(&queue()).await.expect("redis runs");
    assert_eq!((stats.active, stats.delayed, stats.pending, stats.cancelled), (1, 1, 1, 2));
}

#[tokio::test]
async fn a_purge_of_retries_finds_them_behind_any_number_of_scheduled_jobs() {
    let kit = StoreKit::start();
    let purge = PurgeRequest { states: vec![JobState::Retryable], limit: 5, after: None };
    let purged = kit.jobs.purge(&queue(), &purge).await.expect("redis runs");
    assert_eq!((purged.count, purged.has_more), (0, false), "there is nothing yet");
    let id = kit.enqueue(RETRIED).await;
    let worker = consumer();
    let claimed = kit.claim_one(&worker).await;
    kit.jobs.fail(&claimed, &fence(&worker), failure(1), RetryAdvice::ByPolicy).await.expect("redis runs");
    for _ in 0..10 {
        kit.enqueue(SCHEDULED).await;
    }
    let purged = kit.jobs.purge(&queue(), &purge).await.expect("redis runs");
    assert_eq!((purged.count, purged.has_more), (1, false));
    assert_eq!(kit.state(id).await, "cancelled");
}

#[tokio::test]
async fn a_queue_is_deleted_only_when_it_holds_nothing() {
    for body in [
        JOB_BODY,
        SCHEDULED,
        r#"{"type":"a","args":[],"pending":true}"#,
        r#"{"type":"a","args":[],"rate_limit":{"key":"k","concurrency":0}}"#,
    ] {
        let kit = StoreKit::start();
        let id = kit.enqueue(body).await;
        assert!(!kit.jobs.delete_queue(&queue()).await.expect("redis runs"), "{body}");
        assert!(kit.jobs.locate(id).await.expect("redis runs").is_some());
        kit.jobs.cancel(id).await.expect("redis runs").expect("can be cancelled");
        assert!(kit.jobs.delete_queue(&queue()).await.expect("redis runs"), "{body}");
        assert!(kit.jobs.list_queues().await.expect("redis runs").is_empty());
        let left: Vec<String> = kit.redis_keys().await;
        assert!(left.iter().all(|key| key.contains(":r:") || key.contains(":limit:")), "{left:?}");
    }
}

#[tokio::test]
async fn a_job_that_comes_in_while_its_queue_is_deleted_is_not_lost() {
    let kit = StoreKit::start();
    for turn in 0..150 {
        let name: QueueName = format!("q{turn}").parse().expect("a name");
        kit.jobs.set_queue_paused(&name, false).await.expect("redis runs").expect("room");
        let body = [SCHEDULED, JOB_BODY][turn % 2].replace("\"args\"", &format!("\"queue\":\"{name}\",\"args\""));
        let (deleted, id) = tokio::join!(kit.jobs.delete_queue(&name), async {
            // So that it comes in at another moment each time
            for _ in 0..turn % 9 {
                tokio::task::yield_now().await;
            }
            kit.enqueue(&body).await
        });
        deleted.expect("redis runs");
        let registered = kit.jobs.list_queues().await.expect("redis runs").contains(&name);
        assert!(registered && kit.jobs.locate(id).await.expect("redis runs").is_some(), "turn {turn}: {body}");
    }
}

#[tokio::test]
async fn a_limit_of_a_queue_that_there_is_no_room_for_leaves_nothing_behind() {
    let kit = StoreKit::with_variables(&[("GALLEY__JOBS__MAX_QUEUES", "1")]);
    kit.enqueue(JOB_BODY).await;
    let before = kit.redis_keys().await;
    let refused = kit.try_enqueue(r#"{"type":"a","args":[],"queue":"q","rate_limit":{"max_per_second":5}}"#).await;
    assert_eq!(refused.map(drop), Err(EnqueueRefusal::TooManyQueues { max_queues: 1 }));
    assert_eq!(kit.redis_keys().await, before);
}

#[tokio::test]
async fn the_stream_of_a_priority_that_nobody_uses_any_more_is_removed_and_comes_back_with_its_next_job() {
    let kit = StoreKit::start();
    let worker = consumer();
    kit.jobs.open_queue(&queue()).await.expect("redis runs");
    for priority in [1, 2, 3] {
        kit.enqueue(&format!(r#"{{"type":"a","args":[],"priority":{priority}}}"#)).await;
    }
    let held = kit.claim(&worker, 2).await;
    let priorities = async || -> Vec<i8> {
        let known = kit.jobs.priorities(&queue()).await.expect("redis runs");
        known.iter().map(|priority| priority.get()).collect()
    };
    // Long ago: a stream whose last job came a minute ago is removed
    kit.redis_command(&["XADD", "galley:{default}:s:50", "1000-0", "i", "x"]).await;
    kit.redis_command(&["XDEL", "galley:{default}:s:50", "1000-0"]).await;
    kit.redis_command(&["SADD", "galley:{default}:priorities", "50"]).await;
    store::maintenance::run_once(&kit.jobs, &queue()).await.expect("redis runs");
    assert_eq!(priorities().await, [3, 2, 1, 0], "those with jobs stay, and the default one");
    assert_eq!(kit.redis_command(&["EXISTS", "galley:{default}:s:50"]).await, redis::Value::Int(0));
    for claimed in &held {
        kit.complete(&worker, claimed, "1").await;
    }
    store::maintenance::run_once(&kit.jobs, &queue()).await.expect("redis runs");
    assert_eq!(priorities().await, [3, 2, 1, 0], "they had jobs just now");
    let mut known = kit.jobs.priorities(&queue()).await.expect("redis runs");
    kit.redis_command(&["DEL", "galley:{default}:s:3"]).await;
    kit.redis_command(&["SREM", "galley:{default}:priorities", "3"]).await;
    let id = kit.enqueue(r#"{"type":"a","args":[],"priority":3}"#).await;
    let worker_name = "w".parse().expect("a name");
    let by = store::jobs::Claimant::Worker { consumer: &worker, worker: &worker_name };
    let claimed = kit.jobs.claim(&queue(), &mut known, 1, by).await.expect("redis runs").jobs;
    assert_eq!(claimed[0].job.id, id);
}
