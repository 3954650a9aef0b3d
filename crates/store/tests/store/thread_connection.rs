//! The connection of a thread's own. A test runs on one thread, with a runtime of its own.

use store::StoreError;
use testkit::eventually;

use crate::{
    channels::publish,
    kit::{JOB_BODY, StoreKit},
};

/// The connections that are open, without that of the test itself.
async fn ids(kit: &StoreKit) -> Vec<String> {
    let listed = kit.redis_command(&["CLIENT", "LIST", "TYPE", "normal"]).await;
    let text = match listed {
        redis::Value::VerbatimString { text, .. } => text,
        redis::Value::BulkString(bytes) => String::from_utf8(bytes).expect("text"),
        other => panic!("a list, not {other:?}"),
    };
    let own = |line: &&str| !line.contains("cmd=client|list");
    text.lines().filter(own).filter_map(|line| Some(line.split(' ').next()?.strip_prefix("id=")?.to_owned())).collect()
}

/// The id of the connection that answers this thread's commands.
async fn current_id(kit: &StoreKit) -> String {
    let mut redis = kit.redis.clone();
    let id: i64 = redis::cmd("CLIENT").arg("ID").query_async(&mut redis).await.expect("redis runs");
    id.to_string()
}

/// The id of the shared connection, which answers a thread that has none of its own.
async fn shared_id(kit: &StoreKit) -> String {
    let redis = kit.redis.clone();
    // Not joined: the task of the shared connection runs on this thread
    let elsewhere = tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async move {
            redis::cmd("CLIENT").arg("ID").query_async::<i64>(&mut redis.clone()).await.expect("redis runs")
        })
    });
    elsewhere.await.expect("it ran").to_string()
}

async fn start() -> (StoreKit, String, String) {
    let kit = StoreKit::start();
    let shared = current_id(&kit).await;
    kit.redis.use_thread_connection();
    let own =
        eventually("the thread has its own", || async { Some(current_id(&kit).await).filter(|id| *id != shared) })
            .await;
    (kit, shared, own)
}

#[tokio::test]
async fn a_thread_uses_its_own_connection_and_another_thread_the_shared_one() {
    let (kit, shared, own) = start().await;
    kit.enqueue(JOB_BODY).await;
    assert_eq!(current_id(&kit).await, own);
    let open = ids(&kit).await;
    assert!(open.contains(&shared) && open.contains(&own), "{open:?}");
    assert_eq!(shared_id(&kit).await, shared);
}

#[tokio::test]
async fn a_thread_whose_own_connection_closes_uses_the_shared_one_and_opens_another() {
    let (kit, shared, own) = start().await;
    kit.redis_command(&["CLIENT", "KILL", "ID", &own]).await;
    eventually("the thread has another", || async {
        // The command in which the loss shows may fail
        kit.redis.ping().await.ok()?;
        Some(current_id(&kit).await).filter(|id| *id != own && *id != shared)
    })
    .await;
    let id = kit.enqueue(JOB_BODY).await;
    assert_eq!(kit.state(id).await, "available");
}

#[tokio::test]
async fn a_thread_with_its_own_connection_fails_at_once_while_redis_is_away_and_works_after() {
    let (mut kit, ..) = start().await;
    kit.server.kill();
    let error = kit.redis.ping().await.expect_err("redis is away");
    assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
    kit.server.restart();
    eventually("redis answers again", || async { kit.redis.ping().await.ok() }).await;
    // Asked, because the thread's own may be open already
    let shared = shared_id(&kit).await;
    eventually("the thread has its own", || async { Some(current_id(&kit).await).filter(|id| *id != shared) }).await;
    kit.enqueue(JOB_BODY).await;
}

#[tokio::test]
async fn messages_continue_in_a_later_epoch_after_redis_restarted_whichever_connection_publishes() {
    let (mut kit, ..) = start().await;
    let channel = "c".parse().expect("a name");
    let before = publish(&kit, &channel, b"a").await;
    kit.server.kill();
    kit.server.restart();
    eventually("redis answers again", || async { kit.redis.ping().await.ok() }).await;
    let after = publish(&kit, &channel, b"b").await;
    assert!(after.position.epoch > before.position.epoch, "{after:?} follows {before:?}");
    let again = publish(&kit, &channel, b"c").await;
    assert_eq!(again.position.epoch, after.position.epoch);
}
