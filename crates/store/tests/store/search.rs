//! Listing and searching jobs in all states.

use std::sync::Arc;

use common::id::JobId;
use model::job::{JobFilter, JobState, RetryAdvice};
use store::{
    jobs::{Attempt, Completion, Fence, FinishedJob, SearchCursor, SearchPage},
    local_now,
};

use crate::kit::{JOB_BODY, StoreKit, consumer, failure, fence, normal_priority, queue};

fn filter(text: &str) -> JobFilter {
    JobFilter::from_search_text(text, store::local_now()).expect("a search")
}

async fn page(kit: &StoreKit, text: &str, cursor: Option<&SearchCursor>, limit: usize) -> SearchPage {
    kit.jobs.search(&filter(text), cursor, limit).await.expect("redis runs")
}

/// All that match, in pages of two.
async fn found(kit: &StoreKit, text: &str) -> Vec<JobId> {
    let (mut ids, mut cursor) = (Vec::new(), None);
    loop {
        let page = page(kit, text, cursor.as_ref(), 2).await;
        assert!(page.jobs.len() <= 2 && page.complete);
        ids.extend(page.jobs.iter().map(|job| job.id));
        let Some(next) = page.cursor else { return ids };
        // As a client sends it back
        cursor = Some(next.to_string().parse().expect("a cursor"));
    }
}

async fn fail(kit: &StoreKit, message: &str) -> JobId {
    let worker = consumer();
    let claimed = kit.claim_one(&worker).await;
    let mut error = failure(1);
    message.clone_into(&mut error.message);
    kit.jobs.fail(&claimed, &fence(&worker), error, RetryAdvice::ByPolicy).await.expect("redis runs");
    claimed.job.id
}

#[tokio::test]
async fn jobs_of_every_state_are_listed_once_newest_first_in_each_group() {
    let kit = StoreKit::start();
    let mut waiting = Vec::new();
    let discarded = kit.enqueue(r#"{"type":"a","args":[],"retry":{"max_attempts":1}}"#).await;
    fail(&kit, "boom").await;
    let retryable = kit.enqueue(r#"{"type":"a","args":[],"retry":{"initial_interval":"PT1H"}}"#).await;
    fail(&kit, "boom").await;
    let active = kit.enqueue(r#"{"type":"a","args":[]}"#).await;
    let _running = kit.claim_one(&consumer()).await;
    for priority in [0, 5, 0, 0, 0] {
        waiting.push(kit.enqueue(&format!(r#"{{"type":"a","args":[],"priority":{priority}}}"#)).await);
    }
    let scheduled = kit.enqueue(r#"{"type":"a","args":[],"scheduled_at":"+PT2H"}"#).await;
    let pending = kit.enqueue(r#"{"type":"a","args":[],"pending":true,"queue":"other"}"#).await;
    let limited = r#"{"type":"a","args":[],"queue":"other","rate_limit":{"key":"k","concurrency":0}}"#;
    let key_waiting = kit.enqueue(limited).await;

    let all = found(&kit, "").await;
    assert_eq!(all.len(), 11);
    let mut sorted = all.clone();
    sorted.sort_unstable();
    sorted.dedup();
    assert_eq!(sorted.len(), 11, "none twice");
    assert_eq!((all[0], all[10]), (active, discarded));
    assert_eq!(all[1..4], [scheduled, retryable, pending]);
    waiting.push(key_waiting);
    waiting.reverse();
    // Jobs of one millisecond stand in the order of their streams
    let times: Vec<u64> = all[4..10].iter().map(JobId::milliseconds).collect();
    assert!(times.is_sorted_by(|a, b| a >= b), "by time across streams and queues: {times:?}");
    waiting.sort_unstable();
    let mut available = all[4..10].to_vec();
    available.sort_unstable();
    assert_eq!(available, waiting);
    for (state, ids) in [
        ("active", vec![active]),
        ("scheduled", vec![scheduled]),
        ("retryable", vec![retryable]),
        ("pending", vec![pending]),
        ("discarded", vec![discarded]),
        ("retryable,pending", vec![retryable, pending]),
    ] {
        assert_eq!(found(&kit, &format!("state:{state}")).await, ids, "{state}");
    }
    assert_eq!(found(&kit, "queue:other").await, [pending, key_waiting]);
}

#[tokio::test]
async fn conditions_are_answered_from_the_jobs_themselves() {
    let kit = StoreKit::start();
    let body = r#"{"type":"email.send","args":[],"tags":["red"],"meta":{"tenant":"acme"},"retry":{"max_attempts":1,
        "on_exhaustion":"dead_letter"}}"#;
    let first = kit.enqueue(body).await;
    fail(&kit, "Connection Reset").await;
    let second = kit.enqueue(r#"{"type":"email.bounce","args":[],"retry":{"max_attempts":1}}"#).await;
    fail(&kit, "no such user").await;
    let third = kit.enqueue(r#"{"type":"report","args":[],"tags":["red","blue"]}"#).await;
    let running = kit.claim_one(&consumer()).await;
    assert_eq!(running.job.id, third);
    for (text, ids) in [
        ("type:email.*", vec![second, first]),
        ("type:email.send", vec![first]),
        ("tag:red", vec![third, first]),
        ("tag:red tag:blue", vec![third]),
        ("meta:tenant=acme", vec![first]),
        ("error:\"connection reset\"", vec![first]),
        ("reset", vec![first]),
        ("is:dead", vec![first]),
        ("worker:nobody", vec![]),
        ("since:1h", vec![third, second, first]),
        ("until:1h", vec![]),
        ("ended_since:1h", vec![second, first]),
        ("ended_until:1h", vec![]),
        ("ended_until:2999-01-01T00:00:00Z", vec![second, first]),
        ("since:2999-01-01T00:00:00Z", vec![]),
        ("type:*", vec![third, second, first]),
    ] {
        assert_eq!(found(&kit, text).await, ids, "{text}");
    }
    for text in [format!("id:{second}"), second.to_string(), format!("{second} state:discarded")] {
        assert_eq!(found(&kit, &text).await, [second], "{text}");
    }
    assert!(found(&kit, &format!("{second} state:active")).await.is_empty());
    let shown = page(&kit, "state:active", None, 10).await.jobs.remove(0);
    assert_eq!((shown.state, shown.id), (JobState::Active, third));
    assert!(shown.json.contains("\"started_at\""));
}

#[tokio::test]
async fn members_with_the_same_time_come_once_and_a_cursor_outlives_its_job() {
    let kit = StoreKit::start();
    let mut ids = Vec::new();
    for queue in ["a", "b"] {
        for _ in 0..5 {
            let body = format!(r#"{{"type":"a","args":[],"queue":"{queue}","scheduled_at":"2999-01-01T00:00:00Z"}}"#);
            ids.push(kit.enqueue(&body).await);
        }
    }
    let listed = found(&kit, "state:scheduled").await;
    assert_eq!(listed.len(), 10);
    ids.sort_unstable();
    let mut sorted = listed.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, ids);
    let first = page(&kit, "state:scheduled", None, 3).await;
    kit.jobs.cancel(first.jobs[2].id).await.expect("redis runs").expect("it waits");
    let rest = page(&kit, "state:scheduled", first.cursor.as_ref(), 100).await;
    let rest: Vec<JobId> = rest.jobs.iter().map(|job| job.id).collect();
    assert_eq!(rest, listed[3..]);
}

/// Claims all that wait and completes them in one call.
async fn complete_all(kit: &StoreKit) -> Vec<JobId> {
    let worker = consumer();
    let claimed = kit.claim(&worker, 1000).await;
    let batch: Vec<Completion> = claimed
        .into_iter()
        .map(|claimed| {
            let finished = FinishedJob::completed(&claimed.job, Some("1"), Some(claimed.started_at), local_now());
            Completion { claimed: Arc::new(claimed), finished, ended_at: local_now() }
        })
        .collect();
    kit.jobs.complete_batch(&queue(), normal_priority(), &worker, &batch).await.expect("redis runs");
    batch.iter().map(|completion| completion.claimed.job.id).collect()
}

#[tokio::test]
async fn completed_and_cancelled_jobs_are_listed_with_one_entry_for_a_batch() {
    let kit = StoreKit::start();
    let mut ids = Vec::new();
    for size in [3, 1, 4] {
        for _ in 0..size {
            kit.enqueue(JOB_BODY).await;
        }
        let mut batch = complete_all(&kit).await;
        batch.sort_unstable();
        ids.extend(batch);
    }
    let pulled = kit.enqueue(JOB_BODY).await;
    let claimed = kit.pull(None).await.expect("a job waits");
    let fence = Fence::Pull { token: claimed.token.clone(), worker: None };
    let ended = FinishedJob::completed(&claimed.job, None, Some(claimed.started_at), local_now());
    kit.jobs.finish(Attempt::of(&claimed, &fence), &ended, false).await.expect("redis runs");
    ids.push(pulled);
    ids.reverse();
    assert_eq!(found(&kit, "state:completed").await, ids);
    let entries = kit.redis_command(&["XLEN", "galley:{default}:completed_index"]).await;
    assert_eq!(entries, redis::Value::Int(4), "one for each call");

    let cancelled = kit.enqueue(r#"{"type":"a","args":[1]}"#).await;
    kit.jobs.cancel(cancelled).await.expect("redis runs").expect("it waits");
    assert_eq!(found(&kit, "state:cancelled").await, [cancelled]);
    let all = found(&kit, "state:completed,cancelled").await;
    assert_eq!((all.len(), all[0]), (10, cancelled), "by time across lists");
    kit.jobs.redrive(cancelled).await.expect("redis runs").expect("it was cancelled");
    assert!(found(&kit, "state:cancelled").await.is_empty());
    let counted = kit.jobs.count_plain(&filter("state:completed")).await.expect("redis runs");
    assert_eq!(counted, 9);
}

#[tokio::test]
async fn the_newest_completed_jobs_stay_listed_and_older_ones_leave() {
    let kit = StoreKit::with_variables(&[("GALLEY__JOBS__COMPLETED_MAX", "500")]);
    for _ in 0..30 {
        let body = format!("[{}]", vec![JOB_BODY; 100].join(","));
        let all: Vec<common::json::Object> = serde_json::from_str(&body).expect("JSON");
        for members in &all {
            let new = model::job::NewJob::parse(members, 0).expect("a request");
            kit.jobs
                .enqueue(new, common::trace_context::TraceContext::default(), 0)
                .await
                .expect("redis runs")
                .expect("accepted");
        }
        complete_all(&kit).await;
    }
    let counted = kit.jobs.count_plain(&filter("state:completed")).await.expect("redis runs");
    assert!((500..=1500).contains(&counted), "{counted}: whole pages of the list leave at once");
    let newest = page(&kit, "state:completed", None, 500).await;
    assert_eq!(newest.jobs.len(), 500);
    // The counter was lost: the list starts again
    kit.redis_command(&["DEL", "galley:{default}:stats"]).await;
    kit.enqueue(JOB_BODY).await;
    let last = complete_all(&kit).await;
    assert_eq!(found(&kit, "state:completed").await, last);
}

#[tokio::test]
async fn jobs_that_wait_for_a_retry_are_counted_whatever_ends_their_wait() {
    let kit = StoreKit::start();
    let mut ids = Vec::new();
    for limit in ["", "", r#","rate_limit":{"key":"k","concurrency":5}"#] {
        let body = format!(r#"{{"type":"a","args":[],"retry":{{"initial_interval":"PT1H"}}{limit}}}"#);
        ids.push(kit.enqueue(&body).await);
        fail(&kit, "boom").await;
    }
    kit.enqueue(r#"{"type":"a","args":[],"scheduled_at":"+PT1H"}"#).await;
    let counts = async || {
        let stats = kit.jobs.queue_stats(&queue()).await.expect("redis runs");
        (stats.retryable, stats.delayed)
    };
    assert_eq!(counts().await, (3, 4));
    let counted = kit.jobs.count_plain(&filter("state:scheduled")).await.expect("redis runs");
    assert_eq!(counted, 1);
    kit.jobs.cancel(ids[0]).await.expect("redis runs").expect("it waits");
    assert_eq!(counts().await, (2, 3));
    kit.jobs.retry_now(ids[1]).await.expect("redis runs").expect("it waits");
    assert_eq!(counts().await, (1, 2));
    kit.jobs.retry_now(ids[2]).await.expect("redis runs").expect("it waits");
    assert_eq!(counts().await, (0, 1));
}
