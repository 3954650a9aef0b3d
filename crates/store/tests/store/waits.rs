//! Jobs that wait in the middle of their work: what ends a wait, and that neither it nor a signal is lost or doubled.

use std::{collections::HashMap, time::Duration};

use common::{id::JobId, name::SignalName};
use futures_util::future::{join, join_all};
use model::job::{JobSignal, JobState, RetryAdvice};
use serde_json::{Value, json};
use store::{
    jobs::{Attempt, ClaimedJob, Consumer, Fence, NewSignal, SignalOutcome, WaitRequest},
    maintenance,
};
use testkit::{AnswerHoldProxy, RedisServer, eventually, redis};

use crate::kit::{JOB_BODY, StoreKit, consumer, failure, fence, queue};

const HOUR: Duration = Duration::from_hours(1);

pub(crate) fn name(text: &str) -> SignalName {
    text.parse().expect("a name")
}

pub(crate) fn wait_for(signal: &str, timeout: Option<Duration>) -> WaitRequest {
    WaitRequest { step: signal.to_owned(), signal: Some(name(signal)), timeout, received: Vec::new() }
}

fn sleep(step: &str, duration: Duration) -> WaitRequest {
    WaitRequest { step: step.to_owned(), signal: None, timeout: Some(duration), received: Vec::new() }
}

/// Ends an attempt as its worker does; when the job is due.
pub(crate) async fn park(
    kit: &StoreKit,
    claimed: &ClaimedJob,
    consumer: &Consumer,
    request: &WaitRequest,
) -> Option<i64> {
    kit.jobs.wait(claimed, &fence(consumer), request).await.expect("redis runs").map(|begun| begun.due)
}

pub(crate) async fn send(kit: &StoreKit, id: JobId, signal: &str, signal_id: &str, data: &str) -> SignalOutcome {
    let new = NewSignal { name: &name(signal), id: signal_id, data };
    kit.jobs.signal(id, new).await.expect("redis runs")
}

pub(crate) fn added(outcome: SignalOutcome) -> (JobSignal, bool) {
    let SignalOutcome::Added { signal, resumed } = outcome else { panic!("{outcome:?}") };
    (signal, resumed)
}

/// Numbers and data of the signals that an attempt got.
pub(crate) fn got(claimed: &ClaimedJob) -> Vec<(u64, &str)> {
    claimed.signals.iter().map(|signal| (signal.sequence, signal.data.as_str())).collect()
}

fn is_over(claimed: &ClaimedJob) -> bool {
    claimed.job.wait.as_ref().is_some_and(|wait| wait.is_over(claimed.started_at))
}

pub(crate) async fn signals_ttl(kit: &StoreKit, id: JobId) -> i64 {
    let ttl = kit.redis_command(&["PTTL", &format!("galley:{{default}}:signals:{id}")]).await;
    redis::from_redis_value(ttl).expect("a number")
}

/// Nothing of any job is left but results.
pub(crate) async fn is_tidy(kit: &StoreKit) {
    let keys = kit.redis_keys().await;
    let left = |part: &str| keys.iter().any(|key| key.contains(part));
    assert!(!left(":j:") && !left(":signals:") && !left(":checkpoint:"), "{keys:?}");
    let stats = kit.jobs.queue_stats(&queue()).await.expect("redis runs");
    assert_eq!((stats.available, stats.active, stats.delayed, stats.retryable), (0, 0, 0, 0));
}

#[tokio::test]
async fn a_job_waits_without_a_worker_until_its_signal_comes_and_spends_no_attempt() {
    let kit = StoreKit::start();
    let consumer = consumer();
    let id = kit.enqueue(JOB_BODY).await;
    let first = kit.claim_one(&consumer).await;
    assert!(park(&kit, &first, &consumer, &wait_for("approved", Some(HOUR))).await.is_some());
    let shown = kit.job(id).await;
    assert_eq!((&shown["state"], &shown["attempt"]), (&json!("scheduled"), &json!(0)));
    let waiting = &shown["waiting"];
    assert_eq!((&waiting["step"], &waiting["signal"]), (&json!("approved"), &json!("approved")));
    assert!(waiting["until"].as_str() > waiting["since"].as_str() && waiting.get("is_over").is_none(), "{waiting}");
    let stats = kit.jobs.queue_stats(&queue()).await.expect("redis runs");
    assert_eq!((stats.available, stats.active, stats.delayed, stats.retryable), (0, 0, 1, 0));
    assert_eq!(
        park(&kit, &first, &consumer, &wait_for("other", None)).await.map(|_| ()),
        Some(()),
        "its answer was lost"
    );
    assert_eq!(kit.job(id).await["waiting"], *waiting, "the first one counts");

    assert!(!added(send(&kit, id, "other", "o", "0").await).1, "not what it waits for");
    assert_eq!(kit.state(id).await, "scheduled");
    let (signal, resumed) = added(send(&kit, id, "approved", "a", r#"{"by":"ann"}"#).await);
    assert!(resumed && signal.sequence == 2);
    assert_eq!(kit.state(id).await, "available");
    let second = kit.claim_one(&consumer).await;
    assert_eq!(got(&second), [(1, "0"), (2, r#"{"by":"ann"}"#)]);
    assert_eq!((second.job.history.attempts, second.job.history.current_attempt(), is_over(&second)), (0, 1, false));
    assert_eq!(park(&kit, &first, &consumer, &wait_for("approved", None)).await, None, "it is over");
    assert!(kit.job(id).await.get("waiting").is_none(), "it runs");
    kit.complete(&consumer, &second, "1").await;
    is_tidy(&kit).await;
}

#[tokio::test]
async fn a_signal_that_came_before_is_there_when_the_job_waits_for_it() {
    let kit = StoreKit::start();
    let consumer = consumer();
    // Before it runs, and while it runs
    for is_running in [false, true] {
        let id = kit.enqueue(JOB_BODY).await;
        if !is_running {
            added(send(&kit, id, "go", "1", "1").await);
        }
        let first = kit.claim_one(&consumer).await;
        assert!(first.signals.is_empty(), "it does not wait yet");
        if is_running {
            assert!(!added(send(&kit, id, "go", "1", "1").await).1);
        }
        assert!(signals_ttl(&kit, id).await > 7_000_000_000, "nobody knows yet how long the job runs");
        park(&kit, &first, &consumer, &wait_for("go", None)).await.expect("its own attempt");
        assert_eq!(signals_ttl(&kit, id).await, -1, "they stay for as long as it waits");
        assert_eq!(kit.state(id).await, "available");
        let second = kit.claim_one(&consumer).await;
        assert_eq!(got(&second), [(1, "1")]);
        // The next wait is for another one of the same name: it knows the first
        let more = WaitRequest { step: "again".to_owned(), received: vec![1], ..wait_for("go", None) };
        park(&kit, &second, &consumer, &more).await.expect("its own attempt");
        assert_eq!(
            (kit.state(id).await.as_str(), &kit.job(id).await["waiting"]["step"]),
            ("scheduled", &json!("again"))
        );
        assert!(added(send(&kit, id, "go", "2", "2").await).1);
        let third = kit.claim_one(&consumer).await;
        assert_eq!(got(&third), [(1, "1"), (2, "2")]);
        kit.complete(&consumer, &third, "1").await;
        is_tidy(&kit).await;
    }
}

#[tokio::test]
async fn a_signal_that_races_the_wait_or_its_end_resumes_each_job_once() {
    const JOBS: usize = 40;
    let kit = StoreKit::start();
    let consumer = consumer();
    for _ in 0..JOBS {
        kit.enqueue(JOB_BODY).await;
    }
    let first = kit.claim(&consumer, JOBS).await;
    let maintenance = kit.start_maintenance();
    // Half of them also reach their timeout at that moment
    let raced = first.iter().enumerate().map(|(number, claimed)| {
        let timeout = (number % 2 == 0).then_some(Duration::ZERO);
        let (kit, consumer, id) = (&kit, &consumer, claimed.job.id);
        async move {
            let wait = async { park(kit, claimed, consumer, &wait_for("go", timeout)).await };
            let signals = join_all(["one", "two", "one"].map(|signal| send(kit, id, "go", signal, "\"x\"")));
            let (parked, sent) = join(wait, signals).await;
            assert!(parked.is_some());
            let new = sent.iter().filter(|outcome| matches!(outcome, SignalOutcome::Added { .. })).count();
            let known = sent.iter().filter(|outcome| matches!(outcome, SignalOutcome::Known(_))).count();
            assert_eq!((new, known), (2, 1), "{sent:?}");
        }
    });
    join_all(raced).await;
    let mut attempts: HashMap<JobId, usize> = HashMap::new();
    let mut done = Vec::new();
    eventually("all jobs resumed", || {
        let (kit, consumer) = (&kit, &consumer);
        async move { Some(kit.claim(consumer, JOBS).await).filter(|claimed| !claimed.is_empty()) }
    })
    .await
    .into_iter()
    .for_each(|claimed| done.push(claimed));
    while done.len() < JOBS {
        done.extend(kit.claim(&consumer, JOBS).await);
    }
    for claimed in &done {
        *attempts.entry(claimed.job.id).or_default() += 1;
        let stored = kit.jobs.read_signals(&queue(), claimed.job.id).await.expect("redis runs");
        assert_eq!(stored.len(), 2);
        assert!(is_over(claimed) || !claimed.signals.is_empty(), "it resumed for a reason");
    }
    assert!(attempts.len() == JOBS && attempts.values().all(|count| *count == 1), "{attempts:?}");
    assert!(kit.claim(&consumer, JOBS).await.is_empty());
    for claimed in done {
        kit.complete(&consumer, &claimed, "1").await;
    }
    maintenance.stop().await;
    is_tidy(&kit).await;
}

#[tokio::test]
async fn a_step_that_waits_again_goes_on_with_its_time() {
    let kit = StoreKit::start();
    let consumer = consumer();
    let id = kit.enqueue(JOB_BODY).await;
    let first = kit.claim_one(&consumer).await;
    let due = park(&kit, &first, &consumer, &sleep("cool down", HOUR)).await.expect("its own attempt");
    // Somebody runs it early, its worker is lost, it fails: the time stays
    kit.jobs.retry_now(id).await.expect("redis runs").expect("it waits");
    let early = kit.claim_one(&consumer).await;
    assert!(!is_over(&early));
    kit.jobs.worker_lost(&early, &fence(&consumer)).await.expect("redis runs");
    let again = kit.claim_one(&consumer).await;
    kit.jobs.fail(&again, &fence(&consumer), failure(1), RetryAdvice::ByPolicy).await.expect("redis runs");
    kit.jobs.retry_now(id).await.expect("redis runs").expect("it waits");
    let second = kit.claim_one(&consumer).await;
    assert_eq!(park(&kit, &second, &consumer, &sleep("cool down", HOUR)).await, Some(due));
    assert_eq!(kit.job(id).await["state"], "scheduled");
    kit.jobs.retry_now(id).await.expect("redis runs").expect("it waits");
    let third = kit.claim_one(&consumer).await;
    let other = park(&kit, &third, &consumer, &sleep("other", Duration::ZERO)).await.expect("its own attempt");
    assert!(other < due, "another step has a time of its own");
    let fourth = kit.claim_one(&consumer).await;
    assert!(is_over(&fourth) && fourth.job.wait.as_ref().is_some_and(|wait| wait.step == "other"));
    assert_eq!((fourth.job.history.failures, fourth.job.history.crashes), (1, 1), "waits count for nothing");
    kit.complete(&consumer, &fourth, "1").await;
    is_tidy(&kit).await;
}

#[tokio::test]
async fn the_leader_resumes_a_job_whose_time_is_over() {
    let kit = StoreKit::start();
    let consumer = consumer();
    let id = kit.enqueue(JOB_BODY).await;
    let maintenance = kit.start_maintenance();
    let claimed = kit.claim_one(&consumer).await;
    park(&kit, &claimed, &consumer, &wait_for("go", Some(Duration::from_millis(200)))).await.expect("its own attempt");
    eventually("it resumes", || async { (kit.state(id).await == "available").then_some(()) }).await;
    let late = kit.claim_one(&consumer).await;
    assert!(is_over(&late) && late.signals.is_empty());
    // Too late for this wait, and kept for the next one
    assert!(!added(send(&kit, id, "go", "1", "1").await).1);
    park(&kit, &late, &consumer, &WaitRequest { step: "more".to_owned(), ..wait_for("go", None) }).await.expect("due");
    let last = eventually("it resumes at once", || async { kit.claim(&consumer, 1).await.pop() }).await;
    assert_eq!(got(&last), [(1, "1")]);
    maintenance.stop().await;
}

#[tokio::test]
async fn a_waiting_job_is_cancelled_and_expires_like_any_other() {
    let kit = StoreKit::start();
    let consumer = consumer();
    let id = kit.enqueue(JOB_BODY).await;
    let claimed = kit.claim_one(&consumer).await;
    park(&kit, &claimed, &consumer, &wait_for("go", None)).await.expect("its own attempt");
    kit.jobs.cancel(id).await.expect("redis runs").expect("it waits");
    assert_eq!(send(&kit, id, "go", "1", "1").await, SignalOutcome::Over(JobState::Cancelled));
    assert_eq!(park(&kit, &claimed, &consumer, &wait_for("go", None)).await, None);
    for body in [r#"{"type":"a","args":[],"total_timeout_ms":300}"#, r#"{"type":"a","args":[],"expires_at":"+PT0.3S"}"#]
    {
        let id = kit.enqueue(body).await;
        let claimed = kit.claim_one(&consumer).await;
        park(&kit, &claimed, &consumer, &wait_for("go", None)).await.expect("its own attempt");
        eventually("the job is discarded", || async {
            maintenance::run_once(&kit.jobs, &queue()).await.expect("redis runs");
            (kit.state(id).await == "discarded").then_some(())
        })
        .await;
        assert_eq!(send(&kit, id, "go", "1", "1").await, SignalOutcome::Over(JobState::Discarded));
    }
    is_tidy(&kit).await;
    let unknown = "019539a4-b68c-7def-8000-1a2b3c4d5e6f".parse().expect("an id");
    assert_eq!(send(&kit, unknown, "go", "1", "1").await, SignalOutcome::NotFound);
}

#[tokio::test]
async fn a_pulled_job_waits_with_its_token_and_its_checkpoint() {
    let kit = StoreKit::start();
    let id = kit.enqueue(JOB_BODY).await;
    let first = kit.pull(Some(HOUR)).await.expect("a job");
    let token = Fence::Pull { token: first.token.clone(), worker: None };
    kit.jobs.save_checkpoint(Attempt::of(&first, &token), None, "\"half\"").await.expect("redis runs");
    let stranger = Fence::Pull { token: Some("0".repeat(32)), worker: None };
    let request = wait_for("go", None);
    assert_eq!(kit.jobs.wait(&first, &stranger, &request).await.expect("redis runs"), None);
    assert!(kit.jobs.wait(&first, &token, &request).await.expect("redis runs").is_some());
    let ttl = kit.redis_command(&["PTTL", &format!("galley:{{default}}:checkpoint:{id}")]).await;
    assert_eq!(ttl, redis::Value::Int(-1), "it stays for as long as the job waits");
    assert!(added(send(&kit, id, "go", "1", "7").await).1);
    let second = kit.pull(Some(HOUR)).await.expect("a job");
    assert_eq!(
        (second.checkpoint.as_ref().map(|saved| saved.state.as_str()), got(&second)),
        (Some("\"half\""), vec![(1, "7")])
    );
    let shown: Value = serde_json::from_str(&second.signals_json().expect("it waited")).expect("JSON");
    assert_eq!((&shown[0]["name"], &shown[0]["data"], &shown[0]["id"]), (&json!("go"), &json!(7), &json!("1")));
}

#[tokio::test]
async fn a_lost_answer_of_redis_neither_doubles_a_wait_nor_a_signal() {
    let server = RedisServer::start();
    let way = AnswerHoldProxy::start(&server).await;
    let kit = StoreKit::with_server(server, &[]);
    let late = StoreKit::patient(RedisServer::start(), &way.url());
    let consumer = consumer();
    let id = kit.enqueue(JOB_BODY).await;
    let claimed = kit.claim_one(&consumer).await;
    let request = wait_for("go", Some(HOUR));
    way.hold_from(b"done");
    // While its worker waits for the answer the job waits already, and its signal comes
    let (due, first) = tokio::join!(park(&late, &claimed, &consumer, &request), async {
        way.wait_until_held().await;
        let due = park(&kit, &claimed, &consumer, &request).await;
        assert!(due.is_some(), "the same answer again");
        let (first, resumed) = added(send(&kit, id, "go", "1", "1").await);
        assert!(resumed);
        way.release();
        first
    });
    assert!(due.is_some());
    assert_eq!(send(&kit, id, "go", "1", "1").await, SignalOutcome::Known(first));
    // Once it resumed, the worker of the attempt before has nothing to do with it
    assert_eq!(park(&kit, &claimed, &consumer, &request).await, None);
    assert_eq!(kit.claim(&consumer, 2).await.len(), 1);
}
