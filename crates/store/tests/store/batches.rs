use std::collections::HashSet;

use common::{id::JobId, json::Object, time::Millis};
use model::job::NewJob;
use store::{
    StoreResult,
    jobs::{BatchRefusal, EnqueueRefusal, EnqueuedJob},
};
use testkit::RedisServer;

use crate::kit::{JOB_BODY, StoreKit, consumer, queue};

async fn enqueue_all(kit: &StoreKit, bodies: &[&str]) -> Result<Vec<EnqueuedJob>, BatchRefusal> {
    let now = kit.jobs.now().await.expect("redis runs");
    let parse = |body: &&str| {
        let members: Object = serde_json::from_str(body).expect("JSON");
        NewJob::parse(&members, now).expect("a valid request")
    };
    let new = bodies.iter().map(parse).collect();
    kit.jobs
        .enqueue_all(new, common::trace_context::TraceContext::default(), now, &HashSet::new())
        .await
        .expect("redis runs")
}

/// May write into the queue "default" and only read "other": a batch over both breaks off in the middle.
const LIMITED_USER: &str = "user limited on >limited ~galley:queues ~galley:events ~galley:epoch ~galley:id:* \
                            ~galley:{statistics}:* ~galley:{default}:* %R~galley:{other}:* &* +@all\n";
const CHOSEN: &str = r#"{"type":"a","args":[],"id":"019539a4-b68c-7def-8000-1a2b3c4d5e6f"}"#;
const UNIQUE: &str = r#"{"type":"a","args":[],"unique":{}}"#;

#[tokio::test]
async fn one_job_that_is_there_already_keeps_a_whole_batch_out() {
    let kit = StoreKit::start();
    kit.enqueue(CHOSEN).await;
    kit.enqueue(UNIQUE).await;
    let before = kit.redis_keys().await;
    for (bodies, index) in [([JOB_BODY, JOB_BODY, CHOSEN], 2), ([JOB_BODY, UNIQUE, JOB_BODY], 1)] {
        let refused = enqueue_all(&kit, &bodies).await.expect_err("refused");
        assert_eq!(refused.index, index);
        assert!(matches!(refused.refusal, EnqueueRefusal::Duplicate(_)));
        assert_eq!(kit.redis_keys().await, before);
        assert_eq!(kit.jobs.queue_stats(&queue()).await.expect("redis runs").available, 2);
    }
}

#[tokio::test]
async fn two_jobs_of_a_batch_that_are_the_same_keep_it_out() {
    let kit = StoreKit::start();
    let refused = enqueue_all(&kit, &[JOB_BODY, UNIQUE, UNIQUE]).await.expect_err("refused");
    assert_eq!((refused.index, refused.refusal), (2, EnqueueRefusal::DuplicateInBatch));
    let refused = enqueue_all(&kit, &[CHOSEN, JOB_BODY, CHOSEN]).await.expect_err("refused");
    assert_eq!(refused.index, 2);
    assert!(kit.redis_keys().await.is_empty(), "{:?}", kit.redis_keys().await);
}

#[tokio::test]
async fn jobs_of_a_batch_come_in_their_order_within_each_priority_and_queue() {
    let kit = StoreKit::start();
    let body = |number: usize, priority: usize, queue: &str| {
        format!(r#"{{"type":"a","args":[{number}],"priority":{priority},"queue":"{queue}"}}"#)
    };
    let bodies: Vec<String> =
        (0..30).map(|number| body(number, number % 3, if number % 5 == 0 { "other" } else { "default" })).collect();
    let bodies: Vec<&str> = bodies.iter().map(String::as_str).collect();
    let stored = enqueue_all(&kit, &bodies).await.expect("stored");
    assert_eq!(stored.len(), 30);
    let mut expected: Vec<_> = stored.iter().filter(|enqueued| enqueued.job.queue == queue()).collect();
    expected.sort_by_key(|enqueued| -enqueued.job.priority.get());
    let claimed = kit.claim(&consumer(), 100).await;
    let ids = |jobs: &mut dyn Iterator<Item = common::id::JobId>| jobs.collect::<Vec<_>>();
    assert_eq!(
        ids(&mut claimed.iter().map(|claimed| claimed.job.id)),
        ids(&mut expected.iter().map(|enqueued| enqueued.job.id))
    );
}

#[tokio::test]
async fn a_batch_that_goes_beyond_the_depth_limit_is_refused_as_a_whole() {
    let kit = StoreKit::with_variables(&[("GALLEY__QUEUES__DEFAULT__MAX_DEPTH", "3")]);
    kit.enqueue(JOB_BODY).await;
    let refused = enqueue_all(&kit, &[JOB_BODY, JOB_BODY, JOB_BODY]).await.expect_err("refused");
    assert_eq!((refused.index, &refused.refusal), (2, &EnqueueRefusal::QueueFull { max_depth: 3 }));
    assert!(!refused.is_incomplete);
    assert_eq!(kit.jobs.queue_stats(&queue()).await.expect("redis runs").available, 1);
    enqueue_all(&kit, &[JOB_BODY, JOB_BODY]).await.expect("there is room for two");
}

#[tokio::test]
async fn a_batch_whose_second_queue_is_refused_is_taken_back_from_the_first() {
    let server = RedisServer::start_with_acl(LIMITED_USER);
    let kit = StoreKit::with_server(server, &[]);
    let bodies = [JOB_BODY, r#"{"type":"a","args":[],"queue":"other"}"#];
    enqueue_all(&kit, &bodies).await.expect("stored");
    let url = kit.server.url_of("limited", "limited");
    let limited = StoreKit::with_server(RedisServer::start(), &[("GALLEY__REDIS__URL", &url)]);
    let now = kit.jobs.now().await.expect("redis runs");
    let new = bodies.iter().map(|body| NewJob::parse(&serde_json::from_str(body).expect("JSON"), now).expect("valid"));
    let trace = common::trace_context::TraceContext::default();
    let answer = limited.jobs.enqueue_all(new.collect(), trace, now, &HashSet::new()).await;
    assert!(answer.is_err(), "{answer:?}");
    for queue in ["default", "other"] {
        let stats = kit.jobs.queue_stats(&queue.parse().expect("a name")).await.expect("redis runs");
        assert_eq!(stats.available, 1, "{queue}");
    }
}

/// A batch with an `Idempotency-Key`: the gateway makes the same ids of it each time.
struct KeyedBatch {
    new: Vec<NewJob>,
    now: Millis,
    own_ids: HashSet<JobId>,
}

impl KeyedBatch {
    async fn over_both_queues(kit: &StoreKit) -> Self {
        let bodies = [
            r#"{"type":"a","args":[],"id":"01a20358-99fa-7000-8000-3239590134f1"}"#,
            r#"{"type":"a","args":[],"queue":"other","id":"01a20358-99fa-7000-8000-3239590134f2"}"#,
        ];
        let now = kit.jobs.now().await.expect("redis runs");
        let parse = |body: &&str| NewJob::parse(&serde_json::from_str(body).expect("JSON"), now).expect("valid");
        let new: Vec<NewJob> = bodies.iter().map(parse).collect();
        let own_ids = new.iter().filter_map(|job| job.id).collect();
        Self { new, now, own_ids }
    }

    async fn store(&self, kit: &StoreKit) -> StoreResult<Result<Vec<EnqueuedJob>, BatchRefusal>> {
        let trace = common::trace_context::TraceContext::default();
        kit.jobs.enqueue_all(self.new.clone(), trace, self.now, &self.own_ids).await
    }
}

#[tokio::test]
async fn a_batch_that_broke_off_and_is_repeated_with_its_key_has_no_cancelled_job() {
    let kit = StoreKit::with_server(RedisServer::start_with_acl(LIMITED_USER), &[]);
    enqueue_all(&kit, &[JOB_BODY, r#"{"type":"a","args":[],"queue":"other"}"#]).await.expect("stored");
    let url = kit.server.url_of("limited", "limited");
    let limited = StoreKit::with_server(RedisServer::start(), &[("GALLEY__REDIS__URL", &url)]);
    let batch = KeyedBatch::over_both_queues(&kit).await;
    let broken = batch.store(&limited).await;
    assert!(broken.is_err(), "{broken:?}");
    let repeated = batch.store(&kit).await.expect("redis runs").expect("stored");
    assert_eq!(repeated.len(), 2);
    for queue in ["default", "other"] {
        let stats = kit.jobs.queue_stats(&queue.parse().expect("a name")).await.expect("redis runs");
        assert_eq!((stats.available, stats.cancelled), (2, 0), "{queue}");
    }
}

#[tokio::test]
async fn a_batch_that_broke_off_and_meets_a_full_queue_when_it_is_repeated_is_stored_once_there_is_room() {
    let server = RedisServer::start_with_acl(LIMITED_USER);
    let kit = StoreKit::with_server(server, &[("GALLEY__QUEUES__OTHER__MAX_DEPTH", "1")]);
    kit.enqueue(JOB_BODY).await;
    let in_the_way = kit.enqueue(r#"{"type":"a","args":[],"queue":"other"}"#).await;
    let url = kit.server.url_of("limited", "limited");
    let limited = StoreKit::with_variables(&[("GALLEY__REDIS__URL", &url)]);
    let batch = KeyedBatch::over_both_queues(&kit).await;
    let refused = batch.store(&kit).await.expect("redis runs").expect_err("refused");
    assert!(!refused.is_incomplete, "nothing is stored: {refused:?}");
    let broken = batch.store(&limited).await;
    assert!(broken.is_err(), "{broken:?}");
    let refused = batch.store(&kit).await.expect("redis runs").expect_err("refused");
    assert_eq!(refused.refusal, EnqueueRefusal::QueueFull { max_depth: 1 });
    assert!(refused.is_incomplete, "{refused:?}");
    kit.jobs.cancel(in_the_way).await.expect("redis runs").expect("cancelled");
    assert_eq!(batch.store(&kit).await.expect("redis runs").expect("stored").len(), 2);
    for id in &batch.own_ids {
        assert_eq!(kit.state(*id).await, "available");
    }
}

#[tokio::test]
async fn a_batch_that_is_repeated_needs_no_room_for_its_jobs_that_are_there() {
    let kit = StoreKit::with_variables(&[("GALLEY__QUEUES__DEFAULT__MAX_DEPTH", "3")]);
    let job = |n: usize| format!(r#"{{"type":"a","args":[],"id":"01a20358-99fa-7000-8000-3239590134f{n}"}}"#);
    let now = kit.jobs.now().await.expect("redis runs");
    let parse = |n| NewJob::parse(&serde_json::from_str(&job(n)).expect("JSON"), now).expect("valid");
    let new: Vec<NewJob> = (0..3).map(parse).collect();
    let own_ids: HashSet<JobId> = new.iter().filter_map(|job| job.id).collect();
    // It broke off behind its second job
    let broken = KeyedBatch { new: new[..2].to_vec(), now, own_ids: own_ids.clone() };
    assert_eq!(broken.store(&kit).await.expect("redis runs").expect("stored").len(), 2);
    let whole = KeyedBatch { new, now, own_ids };
    assert_eq!(whole.store(&kit).await.expect("redis runs").expect("there is room for the third").len(), 3);
    let another = NewJob::parse(&serde_json::from_str(&job(9)).expect("JSON"), now).expect("valid");
    let larger = KeyedBatch { new: [whole.new.clone(), vec![another]].concat(), ..whole };
    let refused = larger.store(&kit).await.expect("redis runs").expect_err("there is none for a fourth");
    assert_eq!((refused.index, refused.refusal), (3, EnqueueRefusal::QueueFull { max_depth: 3 }));
    assert_eq!(kit.jobs.queue_stats(&queue()).await.expect("redis runs").available, 3);
}
