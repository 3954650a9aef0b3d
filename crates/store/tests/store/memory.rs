//! A full Redis hands out messages and lets operators act, and chains keep their results once.

use model::job::RetryAdvice;
use store::{
    jobs::{Fence, RunTimeLimits},
    maintenance::read_memory,
    workers::{Directive, Workers},
};

use crate::{
    channels::channel,
    kit::{StoreKit, consumer, failure, fence, queue},
    subscriptions::{SubscriptionKit, subscription_body, worker_id},
    workflows::{chain, pull, start, state, succeed},
};

#[tokio::test]
async fn messages_are_handed_out_and_subscriptions_removed_in_a_full_redis() {
    let desk = SubscriptionKit::start();
    let subscription = desk.put(&subscription_body("c", "new")).await;
    let c = channel("c");
    desk.publish(&c, &["0", "1"]).await;
    desk.kit.redis_command(&["CONFIG", "SET", "maxmemory", "1"]).await;
    assert_eq!(desk.read_some(&subscription, &c, "w", 10).await.messages.len(), 2);
    let worker = worker_id("v");
    let all = store::subscriptions::ReclaimFilter { min_idle: std::time::Duration::ZERO, worker: None, after: None };
    let reclaimed = desk.store.reclaim(&subscription, &c, &worker, all, 10).await.expect("a full redis hands out");
    assert_eq!(reclaimed.messages.len(), 2);
    assert!(desk.store.delete(&subscription.name).await.expect("a full redis can be freed"));
}

#[tokio::test]
async fn operators_can_act_on_a_full_redis() {
    let kit = StoreKit::start();
    kit.enqueue(r#"{"type":"a","args":[]}"#).await;
    kit.redis_command(&["CONFIG", "SET", "maxmemory", "1"]).await;
    let stats = kit.jobs.queue_stats(&queue()).await.expect("it can be read");
    assert_eq!((stats.available, stats.active), (1, 0));
    kit.jobs.set_queue_paused(&queue(), true).await.expect("paused").expect("it exists");
    kit.jobs.set_queue_closed(&queue(), true).await.expect("closed").expect("it exists");
    kit.jobs
        .set_queue_limits(&queue(), RunTimeLimits { concurrency: Some(3), ..RunTimeLimits::default() })
        .await
        .expect("limited")
        .expect("it exists");
    let control = kit.jobs.queue_control(&queue()).await.expect("it can be read");
    assert!(control.is_paused && control.is_closed && control.concurrency == Some(3));
    kit.jobs.set_queue_paused(&queue(), false).await.expect("resumed").expect("it exists");
    assert!(!kit.jobs.queue_control(&queue()).await.expect("it can be read").is_paused);
    let key = "00000000-0000-4000-8000-000000000000".parse().expect("a key");
    let workers = Workers::new(&kit.redis);
    workers.set_directive(&key, Directive::Quiet).await.expect("issued");
    assert!(workers.directive_for(&key).await.expect("it can be read").is_some());
}

#[tokio::test]
async fn a_chain_keeps_its_results_once_however_long_it_is() {
    let kit = StoreKit::start();
    let (steps, result) = (30, format!("\"{}\"", "x".repeat(20_000)));
    let id = start(&kit, &chain(steps)).await;
    let mut last = None;
    for _ in 0..steps {
        let step = pull(&kit, "default").await.expect("a step");
        succeed(&kit, &step, &result).await;
        last = Some(step.job.id);
    }
    assert_eq!(state(&kit, id).await, "completed");
    let last = kit.job(last.expect("a step")).await;
    assert_eq!(last["parent_results"].as_array().map(Vec::len), Some(steps - 1), "it shows what it got");
    let mut bytes = 0;
    for key in kit.redis_keys().await {
        // All members of it: an estimate from five of them is off by half
        match kit.redis_command(&["MEMORY", "USAGE", &key, "SAMPLES", "0"]).await {
            redis::Value::Int(used) => bytes += usize::try_from(used).expect("a size"),
            other => panic!("{key}: {other:?}"),
        }
    }
    assert!(bytes < 3 * steps * result.len(), "{bytes} bytes for the workflow's copy and that of each job");
}

#[tokio::test]
async fn dead_letters_can_be_redriven_in_a_full_redis() {
    let kit = StoreKit::start();
    let id = kit.enqueue(r#"{"type":"a","args":[],"retry":{"max_attempts":1,"on_exhaustion":"dead_letter"}}"#).await;
    let consumer = consumer();
    let claimed = kit.claim_one(&consumer).await;
    kit.jobs.fail(&claimed, &fence(&consumer), failure(1), RetryAdvice::ByPolicy).await.expect("redis runs");
    assert_eq!(kit.state(id).await, "discarded");
    kit.redis_command(&["CONFIG", "SET", "maxmemory", "1"]).await;
    kit.jobs.redrive(id).await.expect("a full redis lets operators redrive").expect("it is a dead letter");
    assert_eq!(kit.state(id).await, "available");
}

#[tokio::test]
async fn replaced_jobs_leave_no_result_when_redis_is_nearly_full() {
    let kit = StoreKit::start();
    let job = format!(
        r#"{{"type":"a","args":["{}"],"unique":{{"keys":["type"],"on_conflict":"replace"}}}}"#,
        "x".repeat(9000)
    );
    kit.enqueue(&job).await;
    // Ballast: a tenth of it is room enough for scripts and connections
    kit.redis_command(&["SETRANGE", "ballast", "67108864", "x"]).await;
    // The first reading finds it nearly full, whatever the server takes when it is empty
    let info: redis::InfoDict = redis::from_redis_value(kit.redis_command(&["INFO", "memory"]).await).expect("fields");
    let used: Option<u64> = info.get("used_memory");
    let max = used.expect("it says so") * 10 / 9;
    kit.redis_command(&["CONFIG", "SET", "maxmemory", &max.to_string()]).await;
    read_memory(&kit.redis).await.expect("redis runs");
    for _ in 0..5 {
        kit.enqueue(&job).await;
    }
    let results = kit.redis_keys().await.into_iter().filter(|key| key.contains("}:r:")).count();
    assert_eq!(results, 0, "of the replaced jobs");
}

#[tokio::test]
async fn a_step_refers_to_the_results_before_it_whatever_becomes_of_it() {
    let result = format!("\"{}\"", "x".repeat(20_000));
    for end in ["runs", "cancelled", "discarded", "retried"] {
        let kit = StoreKit::start();
        start(&kit, &chain(3)).await;
        succeed(&kit, &pull(&kit, "default").await.expect("a step"), &result).await;
        let step = pull(&kit, "default").await.expect("the next step");
        assert_eq!(step.job.parent_results.as_deref(), Some(format!("[{result}]").as_str()));
        let fence = Fence::Pull { token: step.token.clone(), worker: None };
        match end {
            "cancelled" => drop(kit.jobs.cancel(step.job.id).await.expect("redis runs").expect("cancelled")),
            "discarded" => {
                drop(kit.jobs.fail(&step, &fence, failure(1), RetryAdvice::Never).await.expect("redis runs"));
            }
            "retried" => {
                drop(kit.jobs.fail(&step, &fence, failure(1), RetryAdvice::ByPolicy).await.expect("redis runs"));
            }
            _ => {}
        }
        assert_eq!(kit.job(step.job.id).await["parent_results"][0].as_str().map(str::len), Some(20_000), "{end}");
        let mut bytes = 0;
        for key in kit.redis_keys().await.iter().filter(|key| !key.contains("{wf:")) {
            match kit.redis_command(&["MEMORY", "USAGE", key, "SAMPLES", "0"]).await {
                redis::Value::Int(used) => bytes += used,
                other => panic!("{key}: {other:?}"),
            }
        }
        // The first step has its own result
        assert!(bytes < 35_000, "{end}: {bytes} bytes beside the workflow");
    }
}
