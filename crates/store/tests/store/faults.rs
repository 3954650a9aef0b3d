use futures_util::FutureExt;
use model::job::RetryAdvice;
use store::jobs::Attempt;
use store::{StoreError, jobs::Settled};
use testkit::{TEST_TIMEOUT, eventually};
use tokio::time::timeout;

use crate::{
    channels::publish,
    kit::{JOB_BODY, StoreKit, consumer, queue},
};

#[tokio::test]
async fn scripts_that_redis_forgot_are_given_to_it_again() {
    let kit = StoreKit::start();
    let worker = consumer();
    for _ in 0..3 {
        kit.redis_command(&["SCRIPT", "FLUSH"]).await;
        kit.enqueue(JOB_BODY).await;
        kit.redis_command(&["SCRIPT", "FLUSH"]).await;
        let claimed = kit.claim_one(&worker).await;
        kit.redis_command(&["SCRIPT", "FLUSH"]).await;
        assert_eq!(kit.complete(&worker, &claimed, "1").await, Settled::Done);
    }
    assert_eq!(kit.jobs.queue_stats(&queue()).await.expect("redis runs").completed, 3);
}

#[tokio::test]
async fn a_redis_that_was_emptied_is_set_up_again_on_demand() {
    let kit = StoreKit::start();
    let worker = consumer();
    kit.enqueue(JOB_BODY).await;
    kit.claim_one(&worker).await;
    kit.redis_command(&["FLUSHDB"]).await;
    assert!(kit.claim(&worker, 1).await.is_empty());
    let id = kit.enqueue(JOB_BODY).await;
    assert_eq!(kit.claim_one(&worker).await.job.id, id);
}

#[tokio::test]
async fn a_stream_without_its_group_hands_out_everything_in_it() {
    let kit = StoreKit::start();
    let id = kit.enqueue(JOB_BODY).await;
    kit.redis_command(&["XGROUP", "DESTROY", "galley:{default}:s:0", "workers"]).await;
    assert_eq!(kit.claim_one(&consumer()).await.job.id, id);
}

#[tokio::test]
async fn a_full_redis_takes_no_new_jobs_and_still_works_off_the_old_ones() {
    let kit = StoreKit::start();
    let worker = consumer();
    let ids = [kit.enqueue(JOB_BODY).await, kit.enqueue(JOB_BODY).await, kit.enqueue(JOB_BODY).await];
    kit.redis_command(&["CONFIG", "SET", "maxmemory", "1"]).await;
    let now = kit.jobs.now().await.expect("redis runs");
    let new = model::job::NewJob::parse(&serde_json::from_str(JOB_BODY).expect("JSON"), now).expect("valid");
    assert!(matches!(
        kit.jobs.enqueue(new, common::trace_context::TraceContext::default(), now).await,
        Err(StoreError::OutOfMemory)
    ));
    let claimed = kit.claim(&worker, 3).await;
    assert_eq!(kit.complete(&worker, &claimed[0], "1").await, Settled::Done);
    let fence = crate::kit::fence(&worker);
    kit.jobs.fail(&claimed[1], &fence, crate::kit::failure(1), RetryAdvice::ByPolicy).await.expect("recorded");
    assert_eq!(kit.jobs.release(Attempt::of(&claimed[2], &fence)).await.expect("recorded"), Settled::Done);
    assert_eq!(kit.state(ids[0]).await, "completed");
    assert_eq!(kit.state(ids[1]).await, "retryable");
    assert_eq!(kit.state(ids[2]).await, "available");
}

#[tokio::test]
async fn a_full_redis_lets_due_jobs_go() {
    let kit = StoreKit::start();
    let id = kit.enqueue(r#"{"type":"a","args":[],"scheduled_at":"+PT0.2S"}"#).await;
    kit.redis_command(&["CONFIG", "SET", "maxmemory", "1"]).await;
    let maintenance = kit.start_maintenance();
    eventually("the job is available", || async { (kit.state(id).await == "available").then_some(()) }).await;
    maintenance.stop().await;
}

#[tokio::test]
async fn what_a_vanished_worker_held_is_reclaimed_whatever_else_is_in_its_pending_list() {
    let kit = StoreKit::with_variables(&[("GALLEY__MAINTENANCE__SWEEP_MS", "100")]);
    for _ in 0..250 {
        kit.redis_command(&["XADD", "galley:{default}:s:0", "*", "i", "no job"]).await;
    }
    kit.jobs.open_queue(&queue()).await.expect("redis runs");
    let mut ghosts = Vec::new();
    for _ in 0..150 {
        ghosts.push(kit.enqueue(JOB_BODY).await);
    }
    let good = kit.enqueue(JOB_BODY).await;
    let vanished = store::jobs::Consumer::new(std::time::Duration::from_millis(100));
    let held = kit.claim(&vanished, 500).await;
    assert_eq!(held.len(), 151);
    for claimed in held.iter().filter(|claimed| claimed.job.id != good) {
        kit.redis_command(&["XDEL", "galley:{default}:s:0", &claimed.entry.to_string()]).await;
    }
    let maintenance = kit.start_maintenance();
    eventually("the job is available", || async { (kit.state(good).await == "available").then_some(()) }).await;
    maintenance.stop().await;
    assert!(kit.jobs.locate(ghosts[0]).await.expect("redis runs").is_none());
}

#[tokio::test]
async fn maintenance_goes_on_beside_a_queue_that_is_broken() {
    let kit = StoreKit::start();
    kit.redis_command(&["ZADD", "galley:queues", "1", "broken"]).await;
    kit.redis_command(&["SET", "galley:{broken}:priorities", "not a set"]).await;
    kit.redis_command(&["ZADD", "galley:{default}:due", "1", "not an id"]).await;
    let id = kit.enqueue(r#"{"type":"a","args":[],"scheduled_at":"+PT0.2S"}"#).await;
    let maintenance = kit.start_maintenance();
    eventually("the job is available", || async { (kit.state(id).await == "available").then_some(()) }).await;
    assert_eq!(kit.redis_command(&["ZCARD", "galley:{default}:due"]).await, redis::Value::Int(0));
    maintenance.stop().await;
}

#[tokio::test]
async fn a_key_of_the_wrong_type_is_an_error_and_is_left_alone() {
    let kit = StoreKit::start();
    kit.redis_command(&["SET", "galley:{default}:s:0", "not a stream"]).await;
    let now = kit.jobs.now().await.expect("redis runs");
    let new = model::job::NewJob::parse(&serde_json::from_str(JOB_BODY).expect("JSON"), now).expect("valid");
    assert!(matches!(
        kit.jobs.enqueue(new, common::trace_context::TraceContext::default(), now).await,
        Err(StoreError::Refused(_))
    ));
    let value = kit.redis_command(&["GET", "galley:{default}:s:0"]).await;
    assert_eq!(value, redis::Value::BulkString(b"not a stream".to_vec()));
    kit.enqueue(r#"{"type":"a","args":[],"queue":"other"}"#).await;
}

#[tokio::test]
async fn commands_fail_at_once_while_redis_is_away_and_work_again_after() {
    let mut kit = StoreKit::start();
    kit.enqueue(JOB_BODY).await;
    kit.server.kill();
    let error = kit.redis.ping().await.expect_err("redis is away");
    assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
    kit.server.restart();
    eventually("redis answers again", || async { kit.redis.ping().await.ok() }).await;
    kit.enqueue(JOB_BODY).await;
}

#[tokio::test]
async fn killed_connections_are_made_again() {
    let kit = StoreKit::start();
    for _ in 0..5 {
        kit.redis.ping().await.expect("redis runs");
        kit.redis_command(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]).await;
        // The command in which the loss shows may fail, the next ones not
        eventually("redis answers again", || async { kit.redis.ping().await.ok() }).await;
        kit.enqueue(JOB_BODY).await;
    }
}

#[tokio::test]
async fn who_is_not_polled_any_more_keeps_nobody_waiting() {
    let kit = StoreKit::start();
    let channel = "c".parse().expect("a name");
    let mut first = Box::pin(kit.redis.ping());
    assert!((&mut first).now_or_never().is_none(), "it has to connect first");
    timeout(TEST_TIMEOUT, kit.redis.ping()).await.expect("another may use the connection").expect("redis runs");
    let mut second = Box::pin(publish(&kit, &channel, b"a"));
    assert!((&mut second).now_or_never().is_none(), "it has to ask for the epoch first");
    timeout(TEST_TIMEOUT, publish(&kit, &channel, b"b")).await.expect("another may publish");
    first.await.expect("redis runs");
    second.await;
}

#[tokio::test]
async fn a_notification_that_redis_refuses_aborts_nothing_that_it_announces() {
    let server = testkit::RedisServer::start();
    let url = format!("redis://mute:p@127.0.0.1:{}/5", server.port());
    let mut user = testkit::redis::cmd("ACL");
    user.arg("SETUSER").arg("mute").arg("on").arg(">p").arg("~*").arg("resetchannels").arg("+@all");
    user.exec_async(&mut server.connection().await).await.expect("valid rules");
    let kit = StoreKit::with_server(server, &[("GALLEY__REDIS__URL", &url)]);
    let worker = consumer();
    kit.enqueue(r#"{"type":"a","args":[],"scheduled_at":"+PT1H"}"#).await;
    let id = kit.enqueue(r#"{"type":"a","args":[],"priority":7,"visibility_timeout_ms":600000}"#).await;
    let claimed = kit.claim_one(&worker).await;
    assert_eq!(kit.complete(&worker, &claimed, "1").await, Settled::Done);
    assert_eq!(kit.state(id).await, "completed");
    let id = kit.enqueue(JOB_BODY).await;
    let pulled = kit.pull(None).await.expect("a job");
    let fence = store::jobs::Fence::Pull { token: pulled.token.clone(), worker: None };
    kit.jobs.release(Attempt::of(&pulled, &fence)).await.expect("released");
    kit.jobs.cancel(id).await.expect("redis runs").expect("cancelled");
    assert_eq!(kit.state(id).await, "cancelled");
    kit.jobs.set_queue_paused(&queue(), true).await.expect("redis runs").expect("a queue");
    assert!(kit.jobs.queue_control(&queue()).await.expect("redis runs").is_paused);
    let position = publish(&kit, &"c".parse().expect("a name"), b"a").await;
    assert_eq!(position.plain_subscribers, 0);
    let workers = store::workers::Workers::new(&kit.redis);
    let key = "pull:w".parse().expect("a worker");
    workers.set_directive(&key, store::workers::Directive::Quiet).await.expect("issued");
}
