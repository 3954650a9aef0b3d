//! Jobs that are put off while they wait for their first attempt.

use common::{id::JobId, json::Object, time, trace_context::TraceContext};
use futures_util::future::join_all;
use model::job::{NewJob, RetryAdvice};
use proptest::{
    prelude::{Strategy as _, any},
    strategy::ValueTree as _,
    test_runner::TestRunner,
};
use serde_json::{Value, json};
use store::jobs::{EnqueueRefusal, EnqueuedJob};
use testkit::{AnswerHoldProxy, RedisServer};

use crate::kit::{StoreKit, consumer, failure, fence, queue};

const HOUR_MS: i64 = 3_600_000;

/// A request that puts equal jobs off; jobs of its type are equal.
fn request(args: &str, more: &Value) -> Value {
    let mut body = json!({
        "type": "a", "args": [args], "scheduled_at": "+PT1H", "unique": { "on_conflict": "debounce" },
    });
    body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    body
}

/// Enqueues at a time of the test's own, as if the request had this id from its Idempotency-Key.
async fn enqueue_at(kit: &StoreKit, body: &Value, now: i64, id: Option<JobId>) -> EnqueuedJob {
    let text = body.to_string();
    let members: Object = serde_json::from_str(&text).expect("JSON");
    let mut new = NewJob::parse(&members, now).expect("a valid request");
    new.id = id;
    kit.jobs.enqueue(new, TraceContext::default(), now).await.expect("redis runs").expect("accepted")
}

async fn debounced(kit: &StoreKit, body: &Value) -> EnqueuedJob {
    kit.try_enqueue(&body.to_string()).await.expect("accepted")
}

#[tokio::test]
async fn a_job_that_waits_anywhere_becomes_the_newest_request() {
    let kit = StoreKit::start();
    let limit = json!({ "key": "k", "concurrency": 0 });
    let waiting = [
        json!({}),
        json!({ "scheduled_at": "1970-01-01T00:00:00Z", "priority": 5 }),
        json!({ "scheduled_at": "1970-01-01T00:00:00Z", "unique": {} }),
        json!({ "scheduled_at": "1970-01-01T00:00:00Z", "rate_limit": limit }),
        json!({ "rate_limit": limit, "expires_at": "2199-01-01T00:00:00Z" }),
    ];
    for (n, older) in waiting.iter().enumerate() {
        let job_type = json!({ "type": format!("a.t{n}") });
        let mut first = request("old", older);
        first["type"] = job_type["type"].clone();
        let older = debounced(&kit, &first).await;
        let newer = debounced(&kit, &request("new", &json!({ "type": job_type["type"], "priority": 7 }))).await;
        assert!(older.is_new && !newer.is_new && older.job.id == newer.job.id, "{first}");
        let job = kit.job(older.job.id).await;
        assert_eq!((&job["state"], &job["args"], &job["priority"]), (&json!("scheduled"), &json!(["new"]), &json!(7)));
        assert!(job.get("rate_limit").is_none() && job.get("expires_at").is_none(), "{job}");
    }
    let stats = kit.jobs.queue_stats(&queue()).await.expect("redis runs");
    assert_eq!((stats.available, stats.delayed), (0, 5));
    assert!(kit.claim(&consumer(), 10).await.is_empty());
    assert_eq!(kit.redis_command(&["ZCARD", "galley:{default}:key_queue:k"]).await, testkit::redis::Value::Int(0));
    let timers = format!("{:?}", kit.redis_command(&["ZRANGE", "galley:{default}:timers", "0", "-1"]).await);
    assert!(!timers.contains("expire"), "{timers}");
}

#[tokio::test]
async fn a_job_that_was_debounced_runs_once_with_the_newest_arguments() {
    let kit = StoreKit::start();
    let id = debounced(&kit, &request("1", &json!({}))).await.job.id;
    for args in ["2", "3"] {
        assert_eq!(debounced(&kit, &request(args, &json!({}))).await.job.id, id);
    }
    kit.jobs.retry_now(id).await.expect("redis runs").expect("it waits");
    let worker = consumer();
    let claimed = kit.claim_one(&worker).await;
    let fields = claimed.job.envelope.fields().expect("an envelope");
    assert_eq!((claimed.job.id, fields.args.get()), (id, r#"["3"]"#));
    kit.complete(&worker, &claimed, "1").await;
    assert!(kit.claim(&worker, 1).await.is_empty());
    assert!(debounced(&kit, &request("4", &json!({}))).await.is_new, "the next series begins");
}

#[tokio::test]
async fn a_job_that_has_begun_is_left_alone_and_the_newer_one_is_debounced_from_then_on() {
    let kit = StoreKit::start();
    let (now, worker) = (json!({ "scheduled_at": "1970-01-01T00:00:00Z" }), consumer());
    let older = debounced(&kit, &request("old", &now)).await.job.id;
    let holder = kit.redis_keys().await.into_iter().find(|key| key.contains(":unique:")).expect("a holder");
    let claimed = kit.claim_one(&worker).await;
    let newer = debounced(&kit, &request("new", &json!({}))).await;
    assert!(newer.is_new && newer.job.id != older);
    assert!(!debounced(&kit, &request("newest", &json!({}))).await.is_new);
    kit.jobs
        .fail(&claimed, &fence(&worker), failure(1), RetryAdvice::After(std::time::Duration::from_hours(1)))
        .await
        .expect("redis runs");
    assert_eq!(debounced(&kit, &request("last", &json!({}))).await.job.id, newer.job.id);
    assert_eq!((kit.job(older).await["args"].clone(), kit.state(older).await), (json!(["old"]), "retryable".into()));
    assert_eq!(kit.job(newer.job.id).await["args"], json!(["last"]));
    // One that failed before has begun too, and so has one that is available again
    for is_available in [false, true] {
        kit.jobs.cancel(newer.job.id).await.expect("redis runs").ok();
        kit.redis_command(&["SET", &holder, &older.to_string()]).await;
        if is_available {
            kit.jobs.retry_now(older).await.expect("redis runs").expect("it waits");
        }
        let next = debounced(&kit, &request("next", &json!({}))).await;
        assert!(next.is_new, "{is_available}");
        kit.jobs.cancel(next.job.id).await.expect("redis runs").expect("it waits");
    }
    assert_eq!(kit.job(older).await["args"], json!(["old"]));
}

#[tokio::test]
async fn a_job_that_a_worker_claims_meanwhile_runs_as_it_was() {
    let server = RedisServer::start();
    let way = AnswerHoldProxy::start(&server).await;
    let kit = StoreKit::with_server(server, &[]);
    let late = StoreKit::patient(RedisServer::start(), &way.url());
    let older = debounced(&kit, &request("mark", &json!({ "scheduled_at": "1970-01-01T00:00:00Z" }))).await.job.id;
    way.hold_from(b"mark");
    let (newer, claimed) = tokio::join!(debounced_late(&late), async {
        way.wait_until_held().await;
        let claimed = kit.claim_one(&consumer()).await;
        way.release();
        claimed
    });
    assert_eq!(
        (claimed.job.id, claimed.job.envelope.fields().expect("an envelope").args.get()),
        (older, r#"["mark"]"#)
    );
    assert!(newer.is_new && newer.job.id != older);
}

async fn debounced_late(late: &StoreKit) -> EnqueuedJob {
    debounced(late, &request("new", &json!({}))).await
}

#[tokio::test]
async fn fifty_at_once_make_one_job_that_is_one_of_them() {
    let kit = StoreKit::start();
    let all = (0..50).map(|n| request(&n.to_string(), &json!({}))).collect::<Vec<_>>();
    let stored = join_all(all.iter().map(|body| debounced(&kit, body))).await;
    assert_eq!(stored.iter().filter(|enqueued| enqueued.is_new).count(), 1);
    assert!(stored.iter().all(|enqueued| enqueued.job.id == stored[0].job.id));
    assert_eq!(kit.jobs.queue_stats(&queue()).await.expect("redis runs").delayed, 1);
}

#[tokio::test]
async fn requests_of_one_batch_put_each_other_off_in_their_order() {
    let kit = StoreKit::start();
    let now = kit.jobs.now().await.expect("redis runs");
    let texts: Vec<String> = (0..100).map(|n| request(&n.to_string(), &json!({})).to_string()).collect();
    let parse = |text: &String| NewJob::parse(&serde_json::from_str(text).expect("JSON"), now).expect("valid");
    let all = texts.iter().map(|text| (parse(text), now)).collect();
    let outcomes = kit.jobs.enqueue_each(all, TraceContext::default()).await;
    let last = outcomes.last().expect("a hundred").as_ref().expect("redis runs").as_ref().expect("accepted");
    assert_eq!(kit.job(last.job.id).await["args"], json!(["99"]));
}

#[tokio::test]
async fn the_time_is_that_of_the_last_request_and_never_after_the_longest_wait() {
    let kit = StoreKit::start();
    let start = kit.jobs.now().await.expect("redis runs");
    let steps = proptest::collection::vec((1..HOUR_MS, 1..2 * HOUR_MS, any::<bool>(), 2 * HOUR_MS..9 * HOUR_MS), 1..12);
    let mut runner = TestRunner::deterministic();
    for series in 0..30 {
        let (mut now, mut created) = (start, None);
        for (pause, delay, is_bounded, max_wait) in steps.new_tree(&mut runner).expect("a series").current() {
            now += pause;
            let (job_type, seconds) = (format!("a.s{series}"), |ms: i64| format!("PT{}.{:03}S", ms / 1000, ms % 1000));
            let mut unique = json!({ "on_conflict": "debounce" });
            if is_bounded {
                unique["max_wait"] = seconds(max_wait).into();
            }
            let more = json!({ "type": job_type, "scheduled_at": format!("+{}", seconds(delay)), "unique": unique });
            let stored = enqueue_at(&kit, &request("x", &more), now, None).await;
            assert_eq!(stored.is_new, created.is_none());
            let first = *created.get_or_insert_with(|| stored.job.created_at());
            let due = if is_bounded { (now + delay).min(first + max_wait) } else { now + delay };
            let id = stored.job.id.to_string();
            let score = kit.redis_command(&["ZSCORE", "galley:{default}:due", &id]).await;
            let score: String = testkit::redis::from_redis_value(score).expect("a number");
            assert_eq!(score, due.to_string(), "{series}");
            assert_eq!(kit.job(stored.job.id).await["scheduled_at"], time::format(due));
        }
    }
}

#[tokio::test]
async fn a_job_that_is_due_after_its_longest_wait_is_debounced_no_more() {
    let kit = StoreKit::start();
    let unique = json!({ "on_conflict": "debounce", "max_wait": "PT10S" });
    let first = request("1", &json!({ "scheduled_at": "1970-01-01T00:00:00Z", "unique": unique }));
    let older = debounced(&kit, &first).await;
    let created = older.job.created_at();
    let second = request("2", &json!({ "scheduled_at": "+PT5S", "unique": unique }));
    let later = enqueue_at(&kit, &second, created + 10_000, None).await;
    assert!(later.is_new, "it waited for ten seconds");
    assert_eq!(
        (kit.state(older.job.id).await, kit.job(older.job.id).await["args"].clone()),
        ("available".into(), json!(["1"]))
    );
    let third = enqueue_at(&kit, &second, created + 12_000, None).await;
    assert_eq!((third.is_new, third.job.id), (false, later.job.id));
}

#[tokio::test]
async fn a_request_that_is_repeated_with_its_key_does_not_undo_a_newer_one() {
    let kit = StoreKit::start();
    let now = kit.jobs.now().await.expect("redis runs");
    let first = debounced(&kit, &request("1", &json!({}))).await.job.id;
    let id = Some(JobId::derived(u64::try_from(now).expect("a time"), &queue(), 7));
    assert_eq!(enqueue_at(&kit, &request("2", &json!({})), now, id).await.job.id, first);
    debounced(&kit, &request("3", &json!({}))).await;
    let again = enqueue_at(&kit, &request("2", &json!({})), now + HOUR_MS, id).await;
    assert_eq!((again.job.id, again.is_new), (first, false));
    assert_eq!(kit.job(first).await["args"], json!(["3"]));
}

#[tokio::test]
async fn only_debounce_puts_a_job_off() {
    let kit = StoreKit::start();
    let older = debounced(&kit, &request("1", &json!({}))).await.job.id;
    let rejected = kit.try_enqueue(&request("2", &json!({ "unique": {} })).to_string()).await.map(drop);
    assert_eq!(rejected, Err(EnqueueRefusal::Duplicate(older)));
    assert_eq!(kit.job(older).await["args"], json!(["1"]));
}
