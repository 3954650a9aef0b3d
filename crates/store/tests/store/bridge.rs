use std::time::Duration;

use store::{jobs::Claimant, list_bridge::ListBridge};

use crate::kit::{StoreKit, consumer};

const LIST: &str = "task:prodcons:queue";

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
    assert!(!kit.redis_keys().await.iter().any(|key| key.contains("bridge") || key == LIST));
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
