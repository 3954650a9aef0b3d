//! What is left of the signals of jobs that wait, and what else may happen to such jobs meanwhile.

use model::job::RetryAdvice;
use serde_json::json;
use store::jobs::{Attempt, FinishedJob, JobChanges, SignalOutcome};

use crate::{
    kit::{JOB_BODY, StoreKit, consumer, failure, fence, queue},
    waits::{added, got, is_tidy, park, send, signals_ttl, wait_for},
};

#[tokio::test]
async fn signals_stay_for_a_job_that_may_run_again_and_go_with_it() {
    let kit = StoreKit::with_variables(&[
        ("GALLEY__JOBS__RESULT_TTL_MS", "60000000"),
        ("GALLEY__JOBS__DEAD_LETTER_TTL_MS", "120000000"),
        ("GALLEY__JOBS__ON_EXHAUSTION", "dead_letter"),
        ("GALLEY__JOBS__DEAD_LETTER_MAX", "3"),
    ]);
    let consumer = consumer();
    let fence = fence(&consumer);
    let mut waited = Vec::new();
    for _ in 0..7 {
        let id = kit.enqueue(JOB_BODY).await;
        added(send(&kit, id, "go", "1", "1").await);
        let claimed = kit.claim_one(&consumer).await;
        park(&kit, &claimed, &consumer, &wait_for("go", None)).await.expect("its own attempt");
        waited.push(kit.claim_one(&consumer).await);
    }
    let [batched, finished, dropped, discarded, deleted, removed, cancelled] = &waited[..] else { panic!("seven") };
    kit.complete(&consumer, batched, "1").await;
    let ended = FinishedJob::completed(&finished.job, None, None, 5);
    kit.jobs.finish(Attempt::of(finished, &fence), &ended, false).await.expect("redis runs");
    for failed in [dropped, discarded, deleted, removed] {
        kit.jobs.fail(failed, &fence, failure(1), RetryAdvice::Never).await.expect("redis runs");
    }
    kit.jobs.cancel(cancelled.job.id).await.expect("redis runs").expect("it runs");
    assert!(kit.jobs.delete_dead_letter(deleted.job.id).await.expect("redis runs"));
    kit.jobs.delete_ended(removed.job.id).await.expect("redis runs").expect("it has ended");
    for gone in [batched, finished, dropped, deleted, removed] {
        assert_eq!(signals_ttl(&kit, gone.job.id).await, -2, "{:?}", gone.job.id);
    }
    for (again, ttl) in [(discarded, 120_000_000), (cancelled, 60_000_000)] {
        assert!((1..=ttl).contains(&signals_ttl(&kit, again.job.id).await));
        kit.jobs.redrive(again.job.id).await.expect("redis runs").expect("it had ended");
        assert!(signals_ttl(&kit, again.job.id).await > 7_000_000_000, "it runs again");
        let claimed = kit.claim_one(&consumer).await;
        assert!(claimed.job.wait.is_none() && claimed.signals.is_empty());
        park(&kit, &claimed, &consumer, &wait_for("go", None)).await.expect("its own attempt");
        let claimed = kit.claim_one(&consumer).await;
        assert_eq!(
            (claimed.job.id, got(&claimed)),
            (again.job.id, vec![(1, "1")]),
            "from the beginning, with what came"
        );
        kit.complete(&consumer, &claimed, "1").await;
    }
    is_tidy(&kit).await;
}

#[tokio::test]
async fn a_job_takes_a_bounded_number_of_signals_and_each_id_once() {
    let kit = StoreKit::start();
    let id = kit.enqueue(JOB_BODY).await;
    for number in 0..1000 {
        let (signal, _) = added(send(&kit, id, "n", &format!("id-{number}"), "0").await);
        assert_eq!(signal.sequence, number + 1);
    }
    assert_eq!(send(&kit, id, "n", "one too many", "0").await, SignalOutcome::Full);
    let SignalOutcome::Known(known) = send(&kit, id, "other", "id-7", "\"other\"").await else { panic!("it is known") };
    assert_eq!((known.sequence, known.name.as_str(), known.data.as_str()), (8, "n", "0"), "the first one counts");
    let large = kit.enqueue(JOB_BODY).await;
    let data = format!("\"{}\"", "x".repeat(65_000));
    for number in 0..16 {
        added(send(&kit, large, "n", &number.to_string(), &data).await);
    }
    assert_eq!(send(&kit, large, "n", "16", &data).await, SignalOutcome::Full);
    added(send(&kit, large, "n", "small", "1").await);
    let stored = kit.jobs.read_signals(&queue(), large).await.expect("redis runs");
    assert_eq!((stored.len(), stored[16].sequence, stored[16].data.as_str()), (17, 17, "1"));
}

#[tokio::test]
async fn a_waiting_job_leaves_its_key_to_others_and_queues_for_it_again() {
    let kit = StoreKit::start();
    let consumer = consumer();
    let body = r#"{"type":"a","args":[],"rate_limit":{"key":"k","concurrency":1}}"#;
    let (one, two) = (kit.enqueue(body).await, kit.enqueue(body).await);
    let first = kit.claim_one(&consumer).await;
    assert!(kit.claim(&consumer, 1).await.is_empty(), "one at a time");
    park(&kit, &first, &consumer, &wait_for("go", None)).await.expect("its own attempt");
    let other = kit.claim_one(&consumer).await;
    assert_eq!((first.job.id, other.job.id), (one, two));
    assert!(added(send(&kit, one, "go", "1", "1").await).1);
    assert_eq!(kit.state(one).await, "available");
    assert!(kit.claim(&consumer, 1).await.is_empty(), "the other one has the key");
    kit.complete(&consumer, &other, "1").await;
    let again = kit.claim_one(&consumer).await;
    assert_eq!((again.job.id, got(&again)), (one, vec![(1, "1")]));
    kit.complete(&consumer, &again, "1").await;
    is_tidy(&kit).await;
}

#[tokio::test]
async fn what_operators_and_the_check_do_to_a_waiting_job_keeps_what_it_waits_for() {
    let kit = StoreKit::start();
    let consumer = consumer();
    let unique = |start: &str| {
        format!(r#"{{"type":"a","args":[1],"scheduled_at":"{start}","unique":{{"on_conflict":"debounce"}}}}"#)
    };
    let id = kit.enqueue(&unique("1970-01-01T00:00:00Z")).await;
    let claimed = kit.claim_one(&consumer).await;
    park(&kit, &claimed, &consumer, &wait_for("go", None)).await.expect("its own attempt");
    // It has begun: a request that puts off one that has not makes another job
    assert!(kit.try_enqueue(&unique("+PT1H")).await.expect("accepted").is_new);
    let changes = JobChanges { priority: Some(5.try_into().expect("a priority")), ..JobChanges::default() };
    kit.jobs.edit(id, &changes).await.expect("redis runs").expect("it waits");
    let shown = kit.job(id).await;
    assert_eq!((&shown["priority"], &shown["waiting"]["signal"]), (&json!(5), &json!("go")));
    assert!(added(send(&kit, id, "go", "1", "1").await).1);
    let again = kit.claim_one(&consumer).await;
    assert_eq!((again.job.priority.get(), got(&again)), (5, vec![(1, "1")]));
    kit.complete(&consumer, &again, "1").await;
}
