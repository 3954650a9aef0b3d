use std::time::{Duration, Instant};

use rand::{Rng, SeedableRng, rngs::StdRng};
use store::{
    StoreError, StoreResult,
    jobs::Claimant,
    list_bridge::{ElementBatch, ListBridge},
};

use crate::kit::{StoreKit, consumer};

const LIST: &str = "task:prodcons:queue";
/// How long after it was taken a batch may be added.
const BATCH_DEADLINE: Duration = Duration::from_secs(30);

async fn elements_of_jobs(kit: &StoreKit) -> Vec<String> {
    let (consumer, worker) = (consumer(), "w".parse().expect("a name"));
    let by = Claimant::Worker { consumer: &consumer, worker: &worker };
    let queue = "prodcons".parse().expect("a name");
    let claimed = kit.jobs.claim(&queue, &mut Vec::new(), 1000, by).await.expect("redis runs");
    claimed.jobs.iter().map(|claimed| claimed.job.envelope.fields().expect("readable").args.get().to_owned()).collect()
}

#[tokio::test]
async fn every_element_becomes_one_job_even_when_elements_are_equal() {
    let kit = StoreKit::start();
    let bridge = ListBridge::new(&kit.jobs, kit.settings.bridge.as_ref().expect("on by default"));
    for element in ["7", "7", "7", "text", "{\"a\":1}"] {
        kit.redis_command(&["LPUSH", LIST, element]).await;
    }
    let mut connection = kit.redis.open_dedicated(Duration::from_secs(1)).await.expect("redis runs");
    let taken = bridge.forward(&mut connection, Duration::from_secs(1)).await.expect("redis runs");
    assert_eq!(taken, 5);
    let mut elements = elements_of_jobs(&kit).await;
    elements.sort();
    assert_eq!(elements, [r#"["text"]"#, r#"["{\"a\":1}"]"#, "[7]", "[7]", "[7]"]);
    assert!(!kit.redis_keys().await.iter().any(|key| key.ends_with('}') || key == LIST));
    assert_eq!(kit.redis_command(&["XLEN", "galley:bridge:{task:prodcons:queue}:batches"]).await, redis::Value::Int(0));
}

#[tokio::test]
async fn elements_that_a_dead_worker_left_on_their_way_are_taken_up_once() {
    let kit = StoreKit::start();
    let bridge = ListBridge::new(&kit.jobs, kit.settings.bridge.as_ref().expect("on by default"));
    for element in ["1", "2", "2"] {
        kit.redis_command(&["LPUSH", LIST, element]).await;
        kit.redis_command(&["LMOVE", LIST, "galley:bridge:{task:prodcons:queue}", "LEFT", "RIGHT"]).await;
    }
    // Two workers start at the same moment and both look
    let (one, two) = tokio::join!(bridge.recover(), bridge.recover());
    one.expect("redis runs");
    two.expect("redis runs");
    let mut elements = elements_of_jobs(&kit).await;
    elements.sort();
    assert_eq!(elements, ["[1]", "[2]", "[2]"]);
}

async fn push(kit: &StoreKit, elements: &[&str]) {
    for element in elements {
        kit.redis_command(&["RPUSH", LIST, element]).await;
    }
}

/// What was claimed now, and how many elements are left anywhere before they are jobs.
async fn recovered(kit: &StoreKit, bridge: &ListBridge) -> Vec<String> {
    bridge.recover().await.expect("redis runs");
    let mut elements = elements_of_jobs(kit).await;
    elements.sort();
    for (command, key) in [("LLEN", ""), ("XLEN", ":batches")] {
        let key = format!("galley:bridge:{{task:prodcons:queue}}{key}");
        assert_eq!(kit.redis_command(&[command, &key]).await, redis::Value::Int(0), "{key}");
    }
    elements
}

#[tokio::test]
async fn a_worker_that_dies_between_the_steps_of_a_batch_loses_and_doubles_nothing() {
    let kit = StoreKit::start();
    let bridge = ListBridge::new(&kit.jobs, kit.settings.bridge.as_ref().expect("on by default"));
    // It dies with the batch
    push(&kit, &["1", "2", "2"]).await;
    let batch = bridge.take_batch().await.expect("redis runs").expect("elements");
    assert!(elements_of_jobs(&kit).await.is_empty());
    let (one, two) = tokio::join!(bridge.recover(), bridge.recover());
    assert_eq!(one.expect("redis runs") + two.expect("redis runs"), 3);
    assert_eq!(recovered(&kit, &bridge).await, ["[1]", "[2]", "[2]"]);
    // It was only slow: the batch comes too late
    assert_eq!(bridge.enqueue_batch(&batch).await.expect("redis runs"), 0);
    // It dies when the jobs are there, and the batch is too
    push(&kit, &["3"]).await;
    let batch = bridge.take_batch().await.expect("redis runs").expect("an element");
    assert_eq!(bridge.add_jobs(&batch).await.expect("redis runs"), 1);
    assert_eq!(bridge.recover().await.expect("redis runs"), 0, "its job is there");
    assert_eq!(recovered(&kit, &bridge).await, ["[3]"]);
    assert_eq!(bridge.add_jobs(&batch).await.expect("redis runs"), 0);
    assert!(elements_of_jobs(&kit).await.is_empty());
}

/// How many jobs were added of a batch that was taken after that time. On a slow machine it may be too old: then, and only
/// then, it is left to those who recover.
fn added(taken_after: Instant, outcome: StoreResult<usize>) -> usize {
    match outcome {
        Err(StoreError::Damaged(_)) if taken_after.elapsed() > BATCH_DEADLINE => 0,
        added => added.expect("redis runs"),
    }
}

#[tokio::test]
async fn workers_that_stop_anywhere_lose_and_double_nothing_together() {
    let kit = StoreKit::start();
    let bridge = ListBridge::new(&kit.jobs, kit.settings.bridge.as_ref().expect("on by default"));
    let seed = rand::random();
    let mut random = StdRng::seed_from_u64(seed);
    let (mut held, mut pushed, mut claimed) = (Vec::<(Instant, ElementBatch)>::new(), Vec::new(), Vec::new());
    for number in 0..300 {
        match random.random_range(0..8) {
            0..3 => {
                push(&kit, &[&number.to_string()]).await;
                pushed.push(format!("[{number}]"));
            }
            3 => {
                let before = Instant::now();
                held.extend(bridge.take_batch().await.expect("redis runs").map(|batch| (before, batch)));
            }
            4 => drop(bridge.recover().await.expect("redis runs")),
            action if !held.is_empty() => {
                let (taken_after, batch) = held.remove(random.random_range(0..held.len()));
                match action {
                    5 => drop(added(taken_after, bridge.add_jobs(&batch).await)),
                    6 => drop(added(taken_after, bridge.enqueue_batch(&batch).await)),
                    // It dies
                    _ => drop(batch),
                }
            }
            _ => claimed.extend(elements_of_jobs(&kit).await),
        }
    }
    claimed.extend(recovered(&kit, &bridge).await);
    while let Some(batch) = bridge.take_batch().await.expect("redis runs") {
        bridge.enqueue_batch(&batch).await.expect("redis runs");
    }
    claimed.extend(elements_of_jobs(&kit).await);
    for (taken_after, batch) in held {
        assert_eq!(added(taken_after, bridge.add_jobs(&batch).await), 0, "seed {seed}");
    }
    pushed.sort();
    claimed.sort();
    assert_eq!(claimed, pushed, "seed {seed}");
}
