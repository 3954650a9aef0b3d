use std::collections::HashSet;

use common::{
    id::{JobId, queue_tag},
    name::QueueName,
};
use store::{
    events::{EventFilter, EventPosition},
    jobs::EnqueueRefusal,
};
use testkit::{AnswerHoldProxy, RedisServer};

use crate::kit::{JOB_BODY, StoreKit, consumer, queue};

#[tokio::test]
async fn a_waiting_job_is_found_by_its_id_alone() {
    let kit = StoreKit::start();
    let id = kit.enqueue(r#"{"type":"a.b","args":[9007199254740993,{"z":1,"a":[]}],"x_unknown":{"k":1.50}}"#).await;
    let located = kit.jobs.locate(id).await.expect("redis runs").expect("found");
    let json = located.to_json();
    assert!(json.contains(r#""args":[9007199254740993,{"z":1,"a":[]}],"x_unknown":{"k":1.50}"#), "{json}");
    assert_eq!(kit.redis_keys().await.len(), 3, "registry, priorities and the stream: no record, no index");
}

#[tokio::test]
async fn a_made_up_id_finds_nothing() {
    let kit = StoreKit::start();
    let id = kit.enqueue(JOB_BODY).await.to_string();
    let last = if id.ends_with('0') { "1" } else { "0" };
    let forged = format!("{}{last}", &id[..id.len() - 1]).parse().expect("an id");
    assert!(kit.jobs.locate(forged).await.expect("redis runs").is_none());
}

#[tokio::test]
async fn jobs_come_out_by_priority_then_in_order_of_arrival() {
    let kit = StoreKit::start();
    let mut expected = Vec::new();
    for priority in [0, 5, -100, 100, 5, 0, 100] {
        let body = format!(r#"{{"type":"a","args":[],"options":{{"priority":{priority}}}}}"#);
        expected.push((priority, kit.enqueue(&body).await));
    }
    expected.sort_by_key(|(priority, _)| -priority);
    let claimed = kit.claim(&consumer(), 100).await;
    let order: Vec<_> = claimed.iter().map(|claimed| claimed.job.id).collect();
    assert_eq!(order, expected.into_iter().map(|(_, id)| id).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_claim_takes_no_more_than_asked_for_across_priorities() {
    let kit = StoreKit::start();
    for priority in [1, 2, 3, 1, 2, 3] {
        kit.enqueue(&format!(r#"{{"type":"a","args":[],"priority":{priority}}}"#)).await;
    }
    assert_eq!(kit.claim(&consumer(), 4).await.len(), 4);
    assert_eq!(kit.jobs.queue_stats(&queue()).await.expect("redis runs").available, 2);
}

#[tokio::test]
async fn an_id_that_a_client_chose_makes_one_job_however_often_it_is_sent() {
    let kit = StoreKit::start();
    let body = r#"{"type":"a","args":[],"id":"019539a4-b68c-7def-8000-1a2b3c4d5e6f"}"#;
    let attempts = futures_util::future::join_all((0..50).map(|_| kit.try_enqueue(body))).await;
    let id = "019539a4-b68c-7def-8000-1a2b3c4d5e6f".parse().expect("an id");
    assert_eq!(attempts.iter().filter(|attempt| attempt.is_ok()).count(), 1);
    assert!(
        attempts
            .iter()
            .filter_map(|attempt| attempt.as_ref().err())
            .all(|refused| *refused == EnqueueRefusal::Duplicate(id))
    );
    assert_eq!(kit.claim(&consumer(), 10).await.len(), 1);
    assert_eq!(kit.job(id).await["state"], "active");
}

#[tokio::test]
async fn an_id_of_a_generated_job_cannot_be_chosen_again() {
    let kit = StoreKit::start();
    let id = kit.enqueue(JOB_BODY).await;
    let again = kit.try_enqueue(&format!(r#"{{"type":"a","args":[],"id":"{id}"}}"#)).await;
    assert_eq!(again.map(drop), Err(EnqueueRefusal::Duplicate(id)));
}

#[tokio::test]
async fn a_queue_with_a_depth_limit_refuses_what_is_beyond_it_and_writes_nothing() {
    let kit = StoreKit::with_variables(&[("GALLEY__QUEUES__DEFAULT__MAX_DEPTH", "3")]);
    for _ in 0..3 {
        kit.enqueue(JOB_BODY).await;
    }
    assert_eq!(kit.try_enqueue(JOB_BODY).await.map(drop), Err(EnqueueRefusal::QueueFull { max_depth: 3 }));
    let high = r#"{"type":"a","args":[],"priority":9}"#;
    assert_eq!(
        kit.try_enqueue(high).await.map(drop),
        Err(EnqueueRefusal::QueueFull { max_depth: 3 }),
        "the limit is the queue's"
    );
    let chosen = r#"{"type":"a","args":[],"id":"019539a4-b68c-7def-8000-1a2b3c4d5e6f"}"#;
    assert_eq!(
        kit.try_enqueue(chosen).await.map(drop),
        Err(EnqueueRefusal::QueueFull { max_depth: 3 }),
        "a client that chose the id"
    );
    assert!(!kit.redis_keys().await.iter().any(|key| key.starts_with("galley:id:")), "nothing is left of a refused id");
    kit.enqueue(r#"{"type":"a","args":[],"scheduled_at":"+PT1H"}"#).await;
    // A job that runs makes room: it is not waiting any more
    kit.claim_one(&consumer()).await;
    kit.enqueue(JOB_BODY).await;
    assert_eq!(kit.jobs.queue_stats(&queue()).await.expect("redis runs").available, 3);
}

#[tokio::test]
async fn there_are_no_more_queues_than_allowed() {
    let kit = StoreKit::with_variables(&[("GALLEY__JOBS__MAX_QUEUES", "2")]);
    kit.enqueue(r#"{"type":"a","args":[],"queue":"q1"}"#).await;
    kit.enqueue(r#"{"type":"a","args":[],"queue":"q2"}"#).await;
    let before = kit.redis_keys().await;
    let refused = kit.try_enqueue(r#"{"type":"a","args":[],"queue":"q3"}"#).await.map(drop);
    assert_eq!(refused, Err(EnqueueRefusal::TooManyQueues { max_queues: 2 }));
    assert_eq!(kit.redis_keys().await, before);
    kit.enqueue(r#"{"type":"a","args":[],"queue":"q1"}"#).await;
}

#[tokio::test]
async fn a_waiting_job_with_200_bytes_of_arguments_costs_at_most_300_bytes() {
    let kit = StoreKit::start();
    let body = format!(r#"{{"type":"email.send","args":["{}"]}}"#, "x".repeat(198));
    let jobs = 5_000;
    for _ in 0..jobs {
        kit.enqueue(&body).await;
    }
    let bytes: usize = redis::cmd("MEMORY")
        .arg("USAGE")
        .arg("galley:{default}:s:0")
        .arg("SAMPLES")
        .arg(0)
        .query_async(&mut kit.server.connection().await)
        .await
        .expect("redis runs");
    assert!(bytes / jobs <= 300, "{} bytes a job", bytes / jobs);
}

#[tokio::test]
async fn jobs_of_two_queues_whose_names_share_a_tag_are_both_found() {
    let kit = StoreKit::start();
    let mut tags = std::collections::HashMap::new();
    let (first, second) = (0..)
        .find_map(|number| {
            let name: QueueName = format!("queue-{number}").parse().expect("a name");
            tags.insert(queue_tag(&name), name.clone()).map(|other| (other, name))
        })
        .expect("two of 65537 names share one of 65536 tags");
    for queue in [first, second] {
        let id = kit.enqueue(&format!(r#"{{"type":"a","args":[],"queue":"{queue}"}}"#)).await;
        assert_eq!(kit.job(id).await["queue"], queue.as_str());
    }
}

#[tokio::test]
async fn events_are_bounded_by_their_number_however_many_share_an_entry() {
    let kit = StoreKit::with_variables(&[("GALLEY__JOBS__EVENTS_MAX", "1000")]);
    for _ in 0..100 {
        futures_util::future::join_all((0..200).map(|_| kit.enqueue(JOB_BODY))).await;
    }
    let (filter, start) = (EventFilter::default(), EventPosition::START.entry);
    let events = kit.redis.events(&filter, start, 1_000_000).await.expect("redis runs").len();
    // "About": Redis drops whole nodes of a hundred entries, and an entry has up to 128 events
    assert!(events < 19_000, "{events} of 20000");
}

#[tokio::test]
async fn ids_are_unique_and_sort_in_order_of_arrival() {
    let kit = StoreKit::start();
    let mut ids = Vec::new();
    for _ in 0..500 {
        ids.push(kit.enqueue(JOB_BODY).await.to_string());
    }
    assert!(ids.is_sorted());
    assert_eq!(ids.iter().collect::<HashSet<_>>().len(), 500);
}

#[tokio::test]
async fn a_chosen_id_is_found_though_the_process_died_right_after_it_stored_the_job() {
    let server = RedisServer::start();
    let way = AnswerHoldProxy::start(&server).await;
    let kit = StoreKit::with_server(server, &[("GALLEY__REDIS__URL", &way.url())]);
    let id: JobId = "019539a4-b68c-7def-8000-1a2b3c4d5e6f".parse().expect("an id");
    // The answer to the creation never arrives
    way.hold_from(b"created");
    let (created, ()) = tokio::join!(
        async {
            let enqueue = kit.try_enqueue(r#"{"id":"019539a4-b68c-7def-8000-1a2b3c4d5e6f","type":"a","args":[]}"#);
            tokio::select! {
                created = enqueue => Some(created.is_ok()),
                () = way.wait_until_held() => None,
            }
        },
        way.wait_until_held()
    );
    assert_eq!(created, None);
    way.release();
    let timers = "galley:{default}:timers";
    assert_eq!(kit.redis_command(&["ZCARD", timers]).await, redis::Value::Int(1));
    kit.redis_command(&["ZADD", timers, "1", &format!("chosen_id {id}")]).await;
    store::maintenance::run_once(&kit.jobs, &queue()).await.expect("redis runs");
    assert_eq!(kit.state(id).await, "available");
    assert_eq!(kit.redis_command(&["EXISTS", timers]).await, redis::Value::Int(0));
}
