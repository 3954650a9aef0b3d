use common::id::JobId;
use futures_util::future::join_all;
use model::job::RetryAdvice;
use store::{
    jobs::{EnqueueRefusal, JobTransitionError},
    maintenance,
};
use testkit::{AnswerHoldProxy, RedisServer, eventually};

use crate::kit::{StoreKit, consumer, failure, fence, queue};

fn body(policy: &str) -> String {
    format!(r#"{{"type":"a","args":[],"unique":{{{policy}}}}}"#)
}

fn on_conflict(what: &str) -> String {
    body(&format!(r#""on_conflict":"{what}""#))
}

#[tokio::test]
async fn a_job_that_is_the_same_as_another_is_refused_or_answered_with_it() {
    let kit = StoreKit::start();
    let first = kit.enqueue(&on_conflict("reject")).await;
    assert_eq!(kit.try_enqueue(&on_conflict("reject")).await.map(drop), Err(EnqueueRefusal::Duplicate(first)));
    let ignored = kit.try_enqueue(&on_conflict("ignore")).await.map(drop);
    assert!(matches!(ignored, Err(EnqueueRefusal::Ignored { id, .. }) if id == first));
    assert_eq!(kit.claim(&consumer(), 10).await.len(), 1);
}

#[tokio::test]
async fn a_job_that_waits_is_replaced_and_one_that_runs_is_not() {
    let kit = StoreKit::start();
    let older = kit.enqueue(&on_conflict("replace")).await;
    let newer = kit.enqueue(&on_conflict("replace")).await;
    assert_eq!((kit.state(older).await, kit.state(newer).await), ("cancelled".into(), "available".into()));
    kit.claim_one(&consumer()).await;
    assert_eq!(kit.try_enqueue(&on_conflict("replace")).await.map(drop), Err(EnqueueRefusal::Duplicate(newer)));
    assert_eq!(kit.state(newer).await, "active");
}

#[tokio::test]
async fn a_replacement_can_keep_the_time_of_the_job_that_it_replaces() {
    let kit = StoreKit::start();
    let scheduled = r#"{"type":"a","args":[],"scheduled_at":"+PT1H","unique":{}}"#;
    let older = kit.enqueue(scheduled).await;
    let time = kit.job(older).await["scheduled_at"].clone();
    let newer = kit.enqueue(&on_conflict("replace_except_schedule")).await;
    assert_eq!((kit.state(older).await, kit.state(newer).await), ("cancelled".into(), "scheduled".into()));
    assert_eq!(kit.job(newer).await["scheduled_at"], time);
    kit.enqueue(&on_conflict("replace")).await;
    assert_eq!(kit.claim(&consumer(), 10).await.len(), 1, "a plain replacement starts as it says");
}

#[tokio::test]
async fn an_older_job_stands_in_the_way_for_its_period_and_in_its_states() {
    let kit = StoreKit::start();
    let short = body(r#""period":"PT0.2S""#);
    kit.enqueue(&short).await;
    eventually("the period is over", || async { kit.try_enqueue(&short).await.ok() }).await;
    let waiting = r#"{"type":"b","args":[],"unique":{"states":["available"]},"priority":5}"#;
    let first = kit.enqueue(waiting).await;
    assert_eq!(kit.try_enqueue(waiting).await.map(drop), Err(EnqueueRefusal::Duplicate(first)));
    kit.claim_one(&consumer()).await;
    kit.enqueue(waiting).await;
    let for_good = r#"{"type":"c","args":[],"unique":{"states":["available","active","completed"]},"priority":9}"#;
    let first = kit.enqueue(for_good).await;
    let worker = consumer();
    kit.complete(&worker, &kit.claim_one(&worker).await, "1").await;
    assert_eq!(kit.try_enqueue(for_good).await.map(drop), Err(EnqueueRefusal::Duplicate(first)), "it is completed");
}

#[tokio::test]
async fn of_fifty_that_are_the_same_at_once_one_is_stored() {
    let kit = StoreKit::start();
    let attempts = join_all((0..50).map(|_| kit.try_enqueue(r#"{"type":"a","args":[],"unique":{}}"#))).await;
    assert_eq!(attempts.iter().filter(|attempt| attempt.is_ok()).count(), 1);
    assert_eq!(kit.jobs.queue_stats(&queue()).await.expect("redis runs").available, 1);
}

#[tokio::test]
async fn of_fifty_that_replace_each_other_at_once_one_is_left() {
    let kit = StoreKit::start();
    let policy = on_conflict("replace");
    let attempts = join_all((0..50).map(|_| kit.try_enqueue(&policy))).await;
    assert!(attempts.iter().all(Result::is_ok), "each had its turn");
    let stats = kit.jobs.queue_stats(&queue()).await.expect("redis runs");
    assert_eq!((stats.available, stats.cancelled), (1, 49));
}

#[tokio::test]
async fn whatever_ends_a_job_makes_way_for_the_next() {
    let kit = StoreKit::start();
    let policy = r#"{"type":"a","args":[],"unique":{},"retry":{"max_attempts":1}}"#;
    let worker = consumer();
    let completed = kit.enqueue(policy).await;
    kit.complete(&worker, &kit.claim_one(&worker).await, "1").await;
    let discarded = kit.enqueue(policy).await;
    let claimed = kit.claim_one(&worker).await;
    kit.jobs.fail(&claimed, &fence(&worker), failure(1), RetryAdvice::ByPolicy).await.expect("redis runs");
    let cancelled = kit.enqueue(policy).await;
    kit.jobs.cancel(cancelled).await.expect("redis runs").expect("can be cancelled");
    kit.enqueue(policy).await;
    for (id, state) in [(completed, "completed"), (discarded, "discarded"), (cancelled, "cancelled")] {
        assert_eq!(kit.state(id).await, state);
    }
}

#[tokio::test]
async fn a_process_that_dies_right_after_the_end_of_a_job_is_made_up_for_by_the_maintenance() {
    let kit = StoreKit::start();
    let policy = r#"{"type":"a","args":[],"unique":{}}"#;
    let id = kit.enqueue(policy).await.to_string();
    let holder = kit.redis_keys().await.into_iter().find(|key| key.contains(":unique:")).expect("a holder");
    let worker = consumer();
    kit.complete(&worker, &kit.claim_one(&worker).await, "1").await;
    // As the end alone leaves it
    kit.redis_command(&["SET", &holder, &id]).await;
    kit.redis_command(&["ZADD", "galley:{default}:timers", "1", &format!("follow_up {id}")]).await;
    maintenance::run_once(&kit.jobs, &queue()).await.expect("redis runs");
    assert!(!kit.redis_keys().await.contains(&holder));
    assert_eq!(kit.redis_command(&["ZCARD", "galley:{default}:timers"]).await, redis::Value::Int(0));
}

#[tokio::test]
async fn a_job_is_replaced_in_the_step_that_creates_the_new_one() {
    let server = RedisServer::start();
    let way = AnswerHoldProxy::start(&server).await;
    let kit = StoreKit::patient(server, &way.url());
    let limited = r#","rate_limit":{"key":"k","concurrency":0}"#;
    for (n, place) in ["", r#","scheduled_at":"+PT1H""#, r#","pending":true"#, limited].iter().enumerate() {
        let older = kit.enqueue(&format!(r#"{{"type":"a.t{n}","args":[],"unique":{{}}{place}}}"#)).await;
        // As if the process died right after the script that creates the job
        way.hold_from(b"created");
        let newer = format!(r#"{{"type":"a.t{n}","args":[],"priority":3,"unique":{{"on_conflict":"replace"}}}}"#);
        let (newer, ()) = tokio::join!(kit.try_enqueue(&newer), async {
            way.wait_until_held().await;
            let ended = kit.redis_command(&["GET", &format!("galley:{{default}}:r:{older}")]).await;
            assert!(format!("{ended:?}").contains("cancelled"), "{ended:?}");
            way.release();
        });
        assert_eq!(kit.state(newer.expect("accepted").job.id).await, "available");
    }
    let stats = kit.jobs.queue_stats(&queue()).await.expect("redis runs");
    assert_eq!((stats.available, stats.delayed, stats.pending, stats.cancelled), (4, 0, 0, 4));
}

/// A cancelled job that has its uniqueness still: as its end alone leaves it.
async fn cancelled_holder(kit: &StoreKit) -> JobId {
    let id = kit.enqueue(r#"{"type":"a","args":[],"unique":{},"meta":{"mark":"holder"}}"#).await;
    let key = kit.redis_keys().await.into_iter().find(|key| key.contains(":unique:")).expect("a holder");
    kit.jobs.cancel(id).await.expect("redis runs").expect("can be cancelled");
    kit.redis_command(&["SET", &key, &id.to_string()]).await;
    id
}

#[tokio::test]
async fn a_job_that_is_redriven_while_an_equal_one_is_created_keeps_its_uniqueness() {
    let server = RedisServer::start();
    let way = AnswerHoldProxy::start(&server).await;
    let kit = StoreKit::with_server(server, &[]);
    let late = StoreKit::patient(RedisServer::start(), &way.url());
    let holder = cancelled_holder(&kit).await;
    // The client that creates has seen that the holder ended, and nothing of what follows
    way.hold_from(b"mark");
    let (created, ()) = tokio::join!(late.try_enqueue(r#"{"type":"a","args":[],"unique":{}}"#), async {
        way.wait_until_held().await;
        kit.jobs.redrive(holder).await.expect("redis runs").expect("nothing is in its way");
        way.release();
    });
    assert_eq!(created.map(drop), Err(EnqueueRefusal::Duplicate(holder)));
    assert_eq!(kit.claim(&consumer(), 10).await.len(), 1, "of equal jobs one lives");
}

#[tokio::test]
async fn of_two_equal_jobs_that_are_redriven_at_once_one_is_refused() {
    let server = RedisServer::start();
    let way = AnswerHoldProxy::start(&server).await;
    let kit = StoreKit::with_server(server, &[]);
    let late = StoreKit::patient(RedisServer::start(), &way.url());
    let other = kit.enqueue(r#"{"type":"a","args":[],"unique":{}}"#).await;
    kit.jobs.cancel(other).await.expect("redis runs").expect("can be cancelled");
    let holder = cancelled_holder(&kit).await;
    way.hold_from(b"mark");
    let (redriven, ()) = tokio::join!(late.jobs.redrive(other), async {
        way.wait_until_held().await;
        kit.jobs.redrive(holder).await.expect("redis runs").expect("nothing is in its way");
        way.release();
    });
    assert_eq!(redriven.expect("redis runs"), Err(JobTransitionError::Duplicate(holder)));
    assert_eq!(kit.claim(&consumer(), 10).await.len(), 1, "of equal jobs one lives");
}

#[tokio::test]
async fn a_full_queue_has_room_for_a_replacement() {
    let kit = StoreKit::with_variables(&[("GALLEY__QUEUES__DEFAULT__MAX_DEPTH", "1")]);
    let older = kit.enqueue(&on_conflict("replace")).await;
    let newer = kit.enqueue(&on_conflict("replace")).await;
    assert_eq!((kit.state(older).await, kit.state(newer).await), ("cancelled".into(), "available".into()));
}
