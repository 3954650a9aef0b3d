//! Checkpoints: who saves them, which attempt gets them, and when they are gone.

use std::time::Duration;

use common::id::JobId;
use model::job::{JobState, RetryAdvice};
use store::jobs::{
    Attempt, CheckpointOutcome, CheckpointRefusal, Claimant, ClaimedJob, Consumer, Fence, FinishedJob, JobCheckpoint,
};
use testkit::redis;

use crate::kit::{JOB_BODY, StoreKit, consumer, failure, fence, queue};

async fn save(kit: &StoreKit, claimed: &ClaimedJob, fence: &Fence, state: &str) -> CheckpointOutcome {
    kit.jobs.save_checkpoint(Attempt::of(claimed, fence), None, state).await.expect("redis runs")
}

/// Saves as a handler in Rust does.
async fn save_as(kit: &StoreKit, claimed: &ClaimedJob, consumer: &Consumer, state: &str) -> u64 {
    claimed.mark_checkpoint();
    number(save(kit, claimed, &fence(consumer), state).await)
}

fn number(outcome: CheckpointOutcome) -> u64 {
    let CheckpointOutcome::Saved { sequence, .. } = outcome else { panic!("{outcome:?}") };
    sequence
}

async fn stored(kit: &StoreKit, id: JobId) -> Option<JobCheckpoint> {
    kit.jobs.read_checkpoint(&queue(), id).await.expect("redis runs")
}

async fn stored_state(kit: &StoreKit, id: JobId) -> Option<String> {
    stored(kit, id).await.map(|checkpoint| checkpoint.state)
}

/// What the attempt got: the number and the state.
fn given(claimed: &ClaimedJob) -> Option<(u64, &str)> {
    claimed.checkpoint.as_ref().map(|checkpoint| (checkpoint.sequence, checkpoint.state.as_str()))
}

async fn ttl_ms(kit: &StoreKit, id: JobId) -> i64 {
    let ttl = kit.redis_command(&["PTTL", &format!("galley:{{default}}:checkpoint:{id}")]).await;
    redis::from_redis_value(ttl).expect("a number")
}

#[tokio::test]
async fn only_the_current_attempt_saves_and_each_later_one_gets_what_was_saved_last() {
    let kit = StoreKit::start();
    let (consumer, other) = (consumer(), consumer());
    let id = kit.enqueue(JOB_BODY).await;
    let first = kit.claim_one(&consumer).await;
    assert_eq!(given(&first), None);
    assert_eq!(save(&kit, &first, &fence(&other), "1").await, CheckpointOutcome::Stale, "another worker");
    let nobody = Fence::Pull { token: None, worker: None };
    assert_eq!(save(&kit, &first, &nobody, "1").await, CheckpointOutcome::Stale, "nobody pulled it");
    assert_eq!(stored(&kit, id).await, None);
    assert_eq!(save_as(&kit, &first, &consumer, r#"{"done":1}"#).await, 1);
    assert_eq!(save_as(&kit, &first, &consumer, r#"{"done":2}"#).await, 2);
    kit.jobs.fail(&first, &fence(&consumer), failure(1), RetryAdvice::ByPolicy).await.expect("redis runs");
    assert_eq!(save(&kit, &first, &fence(&consumer), "3").await, CheckpointOutcome::Stale, "it is over");

    // After a failure, after a release, and after its worker was lost
    kit.jobs.retry_now(id).await.expect("redis runs").expect("it waits");
    let second = kit.claim_one(&consumer).await;
    assert_eq!((second.job.history.attempts, given(&second)), (1, Some((2, r#"{"done":2}"#))));
    assert_eq!(save_as(&kit, &second, &consumer, "[3]").await, 3);
    kit.jobs.release(Attempt::of(&second, &fence(&consumer))).await.expect("redis runs");
    let third = kit.pull(None).await.expect("the job");
    assert_eq!(given(&third), Some((3, "[3]")));
    let token = Fence::Pull { token: third.token.clone(), worker: None };
    assert_eq!(number(save(&kit, &third, &token, "null").await), 4);
    kit.jobs.worker_lost(&third, &token).await.expect("redis runs");
    let fourth = kit.claim_one(&consumer).await;
    assert_eq!((fourth.job.history.crashes, given(&fourth)), (1, Some((4, "null"))));
    kit.complete(&consumer, &fourth, "1").await;
    assert_eq!(stored(&kit, id).await, None, "it goes when the job completes");
}

#[tokio::test]
async fn a_checkpoint_goes_with_a_completed_job_and_waits_for_one_that_may_run_again() {
    let kit = StoreKit::with_variables(&[
        ("GALLEY__JOBS__RESULT_TTL_MS", "60000000"),
        ("GALLEY__JOBS__DEAD_LETTER_TTL_MS", "120000000"),
        ("GALLEY__JOBS__ON_EXHAUSTION", "dead_letter"),
    ]);
    let consumer = consumer();
    let fence = fence(&consumer);
    for _ in 0..7 {
        kit.enqueue(JOB_BODY).await;
    }
    let claimed = kit.claim(&consumer, 7).await;
    for claimed in &claimed {
        save_as(&kit, claimed, &consumer, "\"half\"").await;
        assert!(ttl_ms(&kit, claimed.job.id).await > 7_000_000_000, "nobody knows yet how long the job runs");
    }
    let [batched, plain, finished, discarded, cancelled, deleted, removed] = &claimed[..] else { panic!("seven jobs") };
    kit.complete_all(&consumer, &[batched.clone(), plain.clone()], "1").await;
    let ended = FinishedJob::completed(&finished.job, None, None, 5);
    kit.jobs.finish(Attempt::of(finished, &fence), &ended, false).await.expect("redis runs");
    for gone in [batched, plain, finished] {
        assert_eq!(stored(&kit, gone.job.id).await, None);
    }
    for failed in [discarded, deleted, removed] {
        kit.jobs.fail(failed, &fence, failure(1), RetryAdvice::Never).await.expect("redis runs");
    }
    kit.jobs.cancel(cancelled.job.id).await.expect("redis runs").expect("it ran");
    for (ended, ttl) in [(discarded, 120_000_000), (cancelled, 60_000_000)] {
        let left = ttl_ms(&kit, ended.job.id).await;
        assert!((1..=ttl).contains(&left), "{left} of {ttl}");
    }
    assert!(kit.jobs.delete_dead_letter(deleted.job.id).await.expect("redis runs"));
    kit.jobs.delete_ended(removed.job.id).await.expect("redis runs").expect("it has ended");
    for gone in [deleted, removed] {
        assert_eq!(ttl_ms(&kit, gone.job.id).await, -2);
    }
    for again in [discarded, cancelled] {
        kit.jobs.redrive(again.job.id).await.expect("redis runs").expect("it had ended");
        assert!(ttl_ms(&kit, again.job.id).await > 7_000_000_000, "it runs again");
        let claimed = kit.claim_one(&consumer).await;
        assert_eq!((claimed.job.id, given(&claimed)), (again.job.id, Some((1, "\"half\""))));
        assert_eq!(claimed.job.history.attempts, 0);
    }
}

#[tokio::test]
async fn the_oldest_dead_letters_are_dropped_with_their_checkpoints() {
    let kit = StoreKit::with_variables(&[
        ("GALLEY__JOBS__DEAD_LETTER_MAX", "1"),
        ("GALLEY__JOBS__ON_EXHAUSTION", "dead_letter"),
    ]);
    let consumer = consumer();
    let mut ids = Vec::new();
    for _ in 0..2 {
        ids.push(kit.enqueue(JOB_BODY).await);
        let claimed = kit.claim_one(&consumer).await;
        save_as(&kit, &claimed, &consumer, "1").await;
        kit.jobs.fail(&claimed, &fence(&consumer), failure(1), RetryAdvice::Never).await.expect("redis runs");
    }
    assert_eq!((stored(&kit, ids[0]).await, stored_state(&kit, ids[1]).await), (None, Some("1".to_owned())));
}

#[tokio::test]
async fn a_save_that_is_late_or_repeated_replaces_no_newer_one() {
    let kit = StoreKit::start();
    let id = kit.enqueue(JOB_BODY).await;
    let claimed = kit.pull(Some(Duration::from_mins(1))).await.expect("a job");
    let fence = Fence::Pull { token: claimed.token.clone(), worker: None };
    let save = async |sequence, state: &str| {
        kit.jobs.save_checkpoint(Attempt::of(&claimed, &fence), Some(sequence), state).await.expect("redis runs")
    };
    assert_eq!((number(save(1, "1").await), number(save(2, "2").await), number(save(2, "2").await)), (1, 2, 2));
    assert_eq!(save(1, "1").await, CheckpointOutcome::Superseded(2));
    assert_eq!(stored_state(&kit, id).await.as_deref(), Some("2"));
    assert_eq!(number(save(9, "9").await), 9);
    assert!(kit.jobs.delete_checkpoint(&queue(), id).await.expect("redis runs"));
    assert!(!kit.jobs.delete_checkpoint(&queue(), id).await.expect("redis runs"));
    assert_eq!(number(save(1, "\"new\"").await), 1, "the numbers begin again");
}

#[tokio::test]
async fn a_save_of_a_pulled_job_renews_its_lease() {
    let kit = StoreKit::start();
    kit.enqueue(JOB_BODY).await;
    let claimed = kit.pull(Some(Duration::from_mins(1))).await.expect("a job");
    let name = format!("0:{}", claimed.entry);
    let expiry = || async {
        let score = kit.redis_command(&["ZSCORE", "galley:{default}:leases", &name]).await;
        redis::from_redis_value::<f64>(score).expect("a lease")
    };
    kit.redis_command(&["ZADD", "galley:{default}:leases", "1000", &name]).await;
    save(&kit, &claimed, &Fence::Pull { token: claimed.token.clone(), worker: None }, "1").await;
    assert!(expiry().await > 1000.0);
}

#[tokio::test]
async fn the_checkpoint_of_a_job_that_waits_is_for_its_first_attempt() {
    let kit = StoreKit::start();
    let consumer = consumer();
    let waiting = kit.enqueue(JOB_BODY).await;
    let scheduled = kit.enqueue(r#"{"type":"test.echo","args":[2],"scheduled_at":"+PT1H"}"#).await;
    for (id, state) in [(waiting, "1"), (waiting, "2"), (scheduled, "3")] {
        kit.jobs.set_checkpoint(id, None, state).await.expect("redis runs").expect("it waits");
    }
    let first = kit.claim_one(&consumer).await;
    assert_eq!((first.job.id, given(&first)), (waiting, Some((2, "2"))));
    let refused = kit.jobs.set_checkpoint(waiting, None, "4").await.expect("redis runs");
    assert_eq!(refused, Err(CheckpointRefusal::State(JobState::Active)));
    kit.jobs.retry_now(scheduled).await.expect("redis runs").expect("it waits");
    let second = kit.claim_one(&consumer).await;
    assert_eq!((second.job.id, given(&second)), (scheduled, Some((1, "3"))));
    kit.complete_all(&consumer, &[first, second], "1").await;
    for id in [waiting, scheduled] {
        let refused = kit.jobs.set_checkpoint(id, None, "5").await.expect("redis runs");
        assert_eq!(refused, Err(CheckpointRefusal::State(JobState::Completed)));
        assert_eq!(stored(&kit, id).await, None);
    }
    let keys = kit.redis_keys().await;
    assert!(!keys.iter().any(|key| key.contains(":checkpoint:") || key.contains(":j:")), "{keys:?}");
}

#[tokio::test]
async fn each_of_many_jobs_in_one_claim_gets_its_own_checkpoint() {
    let kit = StoreKit::start();
    // More than are read in one answer, and some without one between them
    for number in 0..40_u64 {
        let id = kit.enqueue(JOB_BODY).await;
        if number % 3 > 0 {
            let set = kit.jobs.set_checkpoint(id, Some(number), &number.to_string()).await;
            set.expect("redis runs").expect("it waits");
        }
    }
    let claimed = kit.claim(&consumer(), 40).await;
    assert_eq!(claimed.len(), 40);
    let with_one: Vec<(JobId, u64)> =
        claimed.iter().filter_map(|claimed| Some((claimed.job.id, given(claimed)?.0))).collect();
    assert_eq!(with_one.len(), 26);
    for (id, number) in with_one {
        let stored = stored(&kit, id).await.expect("it stays until the job ends");
        assert_eq!((stored.sequence, stored.state), (number, number.to_string()));
    }
}

#[tokio::test]
async fn a_program_with_a_callback_token_saves_and_the_worker_that_ends_the_job_deletes_it() {
    let kit = StoreKit::start();
    let consumer = consumer();
    let id = kit.enqueue(JOB_BODY).await;
    let claimed = kit.claim_one(&consumer).await;
    let (token, worker) = ("a".repeat(32), "w".parse().expect("a name"));
    kit.jobs.issue_callback_token(&claimed, &consumer, &worker, &token, None).await.expect("redis runs");
    let fence = Fence::Pull { token: Some(token), worker: None };
    assert_eq!(number(save(&kit, &claimed, &fence, "1").await), 1);
    kit.complete(&consumer, &claimed, "1").await;
    assert_eq!(stored(&kit, id).await, None);
}

#[tokio::test]
async fn jobs_whose_checkpoints_have_no_room_in_one_answer_come_in_the_next_ones() {
    let kit = StoreKit::start();
    let consumer = consumer();
    let state = format!("\"{}\"", "s".repeat(1_000_000));
    for _ in 0..10 {
        kit.enqueue(JOB_BODY).await;
    }
    for claimed in kit.claim(&consumer, 10).await {
        save_as(&kit, &claimed, &consumer, &state).await;
        kit.jobs.release(Attempt::of(&claimed, &fence(&consumer))).await.expect("redis runs");
    }
    let mut sizes = Vec::new();
    loop {
        let by = Claimant::Pull { worker: None, lease: None };
        let batch = kit.jobs.claim(&queue(), &mut Vec::new(), 100, by).await.expect("redis runs");
        for claimed in &batch.jobs {
            let fence = Fence::Pull { token: claimed.token.clone(), worker: None };
            assert_eq!((claimed.job.history.current_attempt(), given(claimed)), (1, Some((1, &*state))));
            let ended = FinishedJob::completed(&claimed.job, None, None, 5);
            kit.jobs.finish(Attempt::of(claimed, &fence), &ended, false).await.expect("redis runs");
        }
        sizes.push((batch.jobs.len(), batch.is_cut));
        if !batch.is_cut {
            break;
        }
    }
    assert_eq!(sizes, [(4, true), (4, true), (2, false)]);
}
