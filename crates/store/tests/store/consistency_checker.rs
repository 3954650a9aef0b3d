use std::time::Duration;

use common::id::JobId;
use model::job::RetryAdvice;
use store::jobs::Attempt;
use store::{
    jobs::{Claimant, Settled},
    maintenance::{self, CheckCursor},
};
use testkit::eventually;

use crate::kit::{JOB_BODY, StoreKit, consumer, failure, fence, queue};

const SCHEDULED: &str = r#"{"type":"a","args":[],"scheduled_at":"+PT1H"}"#;
const PENDING: &str = r#"{"type":"a","args":[],"pending":true}"#;
const KEYED: &str = r#"{"type":"a","args":[],"rate_limit":{"key":"k","concurrency":1}}"#;
const UNIQUE: &str = r#"{"type":"a","args":[],"unique":{"keys":["type"]}}"#;

/// Everything that is wrong with the queue and whether it was mended, found in many small slices.
async fn check(kit: &StoreKit, repair: bool) -> Vec<(String, bool)> {
    let (mut cursor, mut found) = (Some(CheckCursor::start()), Vec::new());
    while let Some(from) = cursor {
        // Through text, as over HTTP
        let from = from.to_string().parse().expect("a cursor");
        let report = kit.jobs.check_queue(&queue(), repair, from, 3).await.expect("redis runs");
        found.extend(report.violations.into_iter().map(|violation| (violation.kind, violation.is_repaired)));
        cursor = report.next;
    }
    found.sort();
    found.dedup();
    found
}

/// It is reported, mended, and then it is gone.
async fn is_mended(kit: &StoreKit, kinds: &[&str]) {
    let all = |mended: bool| kinds.iter().map(|kind| ((*kind).to_owned(), mended)).collect::<Vec<_>>();
    assert_eq!(check(kit, false).await, all(false));
    assert_eq!(check(kit, false).await, all(false), "a look changes nothing");
    assert_eq!(check(kit, true).await, all(true));
    assert_eq!(check(kit, true).await, []);
}

fn key(name: &str) -> String {
    format!("galley:{{default}}:{name}")
}

fn record(id: JobId) -> String {
    key(&format!("j:{id}"))
}

#[tokio::test]
async fn a_job_in_every_place_at_once_is_nothing_to_report() {
    let kit = StoreKit::start();
    for body in [JOB_BODY, SCHEDULED, PENDING, KEYED, KEYED, UNIQUE, JOB_BODY, JOB_BODY] {
        kit.enqueue(body).await;
    }
    let worker = consumer();
    let held = kit.claim(&worker, 3).await;
    kit.jobs.fail(&held[0], &fence(&worker), failure(1), RetryAdvice::ByPolicy).await.expect("redis runs");
    kit.jobs.release(Attempt::of(&held[1], &fence(&worker))).await.expect("redis runs");
    kit.pull(None).await.expect("a job");
    assert_eq!(check(&kit, true).await, []);
}

#[tokio::test]
async fn a_parked_job_that_is_in_no_set_is_restored() {
    let kit = StoreKit::start();
    for (body, set) in [(SCHEDULED, "due"), (PENDING, "pending")] {
        let id = kit.enqueue(body).await.to_string();
        let score = kit.redis_command(&["ZSCORE", &key(set), &id]).await;
        kit.redis_command(&["ZREM", &key(set), &id]).await;
        is_mended(&kit, &["record_without_place"]).await;
        assert_ne!(kit.redis_command(&["ZSCORE", &key(set), &id]).await, redis::Value::Nil);
        if set == "due" {
            assert_eq!(kit.redis_command(&["ZSCORE", &key(set), &id]).await, score, "its time is as it was");
        }
    }
}

#[tokio::test]
async fn a_job_that_fell_out_of_its_key_queue_is_queued_again() {
    let kit = StoreKit::start();
    let (first, second) = (kit.enqueue(KEYED).await, kit.enqueue(KEYED).await);
    kit.redis_command(&["ZREM", &key("key_queue:k"), &second.to_string()]).await;
    // Its counter says one more than there is; both are mended
    let found = check(&kit, true).await;
    assert_eq!(found, [("key_waiting_counter".to_owned(), true), ("record_without_place".to_owned(), true)]);
    assert_eq!(check(&kit, true).await, []);
    let worker = consumer();
    for id in [first, second] {
        let claimed = kit.claim_one(&worker).await;
        assert_eq!(claimed.job.id, id);
        kit.complete(&worker, &claimed, "1").await;
    }
}

#[tokio::test]
async fn members_of_sets_without_a_job_are_dropped() {
    let kit = StoreKit::start();
    let stranger = "019539a4-b68c-7def-8000-1a2b3c4d5e6f";
    kit.enqueue(KEYED).await;
    for set in ["due", "pending"] {
        kit.redis_command(&["ZADD", &key(set), "99999999999999", stranger]).await;
        is_mended(&kit, &["member_without_record"]).await;
    }
    kit.redis_command(&["ZADD", &key("admitted:k"), "1", stranger]).await;
    is_mended(&kit, &["admitted_without_entry"]).await;
    kit.redis_command(&["ZADD", &key("timers"), "99999999999999", &format!("expire {stranger}")]).await;
    is_mended(&kit, &["timer_of_ended"]).await;
    kit.redis_command(&["ZADD", &key("leases"), "99999999999999", "0:1-0"]).await;
    is_mended(&kit, &["attempt_without_entry"]).await;
}

#[tokio::test]
async fn a_job_that_waits_in_two_sets_stays_where_its_record_says() {
    let kit = StoreKit::start();
    let (scheduled, unique) = (kit.enqueue(SCHEDULED).await, kit.enqueue(UNIQUE).await);
    kit.redis_command(&["ZADD", &key("pending"), "1", &scheduled.to_string()]).await;
    kit.redis_command(&["ZADD", &key("due"), "99999999999999", &unique.to_string()]).await;
    is_mended(&kit, &["member_elsewhere"]).await;
    assert_eq!((kit.state(scheduled).await, kit.state(unique).await), ("scheduled".into(), "available".into()));
}

#[tokio::test]
async fn a_second_entry_of_a_job_is_dropped() {
    let kit = StoreKit::start();
    let ids = [kit.enqueue(UNIQUE).await, kit.enqueue(SCHEDULED).await];
    for id in ids {
        kit.redis_command(&["XADD", &key("s:0"), "*", "i", &id.to_string(), "e", r#"{"type":"a","args":[]}"#]).await;
    }
    is_mended(&kit, &["entry_elsewhere"]).await;
    assert_eq!(kit.claim(&consumer(), 10).await.len(), 1, "each job once");
}

#[tokio::test]
async fn an_entry_of_a_job_that_is_over_is_dropped_and_so_is_a_record_that_has_no_place() {
    let kit = StoreKit::start();
    let id = kit.enqueue(UNIQUE).await;
    kit.jobs.cancel(id).await.expect("redis runs").expect("can be cancelled");
    kit.redis_command(&["XADD", &key("s:0"), "*", "i", &id.to_string(), "e", r#"{"type":"a","args":[]}"#]).await;
    is_mended(&kit, &["entry_of_ended"]).await;
    kit.redis_command(&["HSET", &record(id), "s", "queued", "p", "0", "x", "1-1"]).await;
    is_mended(&kit, &["record_of_ended"]).await;
    assert_eq!(kit.state(id).await, "cancelled");
}

#[tokio::test]
async fn a_job_whose_record_is_gone_is_found_again() {
    let kit = StoreKit::start();
    let id = kit.enqueue(UNIQUE).await;
    kit.redis_command(&["DEL", &record(id)]).await;
    assert!(kit.jobs.locate(id).await.expect("redis runs").is_none());
    is_mended(&kit, &["entry_without_record"]).await;
    assert_eq!(kit.state(id).await, "available");
}

#[tokio::test]
async fn a_job_whose_entry_is_gone_is_reported_and_let_be() {
    let kit = StoreKit::start();
    let id = kit.enqueue(UNIQUE).await;
    kit.redis_command(&["XTRIM", &key("s:0"), "MAXLEN", "0"]).await;
    for repair in [false, true, true] {
        assert_eq!(check(&kit, repair).await, [("record_without_entry".to_owned(), false)]);
    }
    assert_ne!(kit.redis_command(&["EXISTS", &record(id)]).await, redis::Value::Int(0));
}

#[tokio::test]
async fn a_pulled_job_that_lost_its_lease_or_attempt_is_available_again() {
    let kit = StoreKit::start();
    kit.enqueue(JOB_BODY).await;
    for (command, set, kind) in
        [("ZREM", "leases", "attempt_without_lease"), ("HDEL", "active", "lease_without_attempt")]
    {
        let claimed = kit.pull(None).await.expect("a job");
        let member = format!("{}:{}", claimed.job.priority, claimed.entry);
        kit.redis_command(&[command, &key(set), &member]).await;
        is_mended(&kit, &[kind]).await;
        // More than once only if Redis was so slow that leases are spared
        eventually(kind, || async {
            maintenance::run_once(&kit.jobs, &queue()).await.expect("redis runs");
            (kit.state(claimed.job.id).await == "available").then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn unlisted_key_queues_and_a_wrong_counter_are_put_right() {
    let kit = StoreKit::start();
    kit.enqueue(KEYED).await;
    kit.enqueue(KEYED).await;
    kit.redis_command(&["HSET", &key("stats"), "key_waiting", "7"]).await;
    is_mended(&kit, &["key_waiting_counter"]).await;
    assert_eq!(kit.jobs.queue_stats(&queue()).await.expect("redis runs").available, 2);
    kit.redis_command(&["DEL", &key("waiting_keys")]).await;
    check(&kit, true).await;
    check(&kit, true).await;
    assert_eq!(check(&kit, true).await, []);
    assert_eq!(kit.jobs.queue_stats(&queue()).await.expect("redis runs").available, 2);
}

#[tokio::test]
async fn a_queue_that_is_not_in_the_registry_is_registered_again() {
    let kit = StoreKit::start();
    kit.enqueue(SCHEDULED).await;
    kit.redis_command(&["DEL", "galley:queues"]).await;
    is_mended(&kit, &["queue_unregistered"]).await;
    kit.redis_command(&["DEL", "galley:queues"]).await;
    let (_, found) = kit.jobs.check_lists(0, 1000).await.expect("redis runs");
    assert_eq!(found.len(), 1, "without being asked for it by name");
    assert_eq!(kit.jobs.list_queues().await.expect("redis runs"), [queue()]);
}

#[tokio::test]
async fn what_is_on_no_list_is_listed_again() {
    let kit = StoreKit::with_variables(&[("GALLEY__MAINTENANCE__SWEEP_MS", "50")]);
    kit.enqueue(r#"{"type":"a","args":[],"priority":7}"#).await;
    kit.jobs.set_queue_paused(&"other".parse().expect("a name"), true).await.expect("redis runs").expect("a queue");
    let workflow = crate::workflows::start(&kit, &crate::workflows::chain(2)).await.to_string();
    crate::channels::publish(&kit, &"c".parse().expect("a name"), b"a").await;
    let now = kit.jobs.now().await.expect("redis runs");
    let entry = r#"{"name":"nightly","cron":"0 3 * * *","type":"a","args":[]}"#;
    let definition = model::cron::CronDefinition::parse(&serde_json::from_str(entry).expect("JSON"), now);
    kit.jobs.cron().register(&definition.expect("valid"), now).await.expect("redis runs").expect("room");
    let workflow = ["galley:workflows", &workflow];
    let lists = [["galley:queues", "other"], workflow, ["galley:channels", "c"], ["galley:{cron}:next", "nightly"]];
    for [list, member] in lists {
        assert_eq!(kit.redis_command(&["ZREM", list, member]).await, redis::Value::Int(1), "{list}");
    }
    assert_eq!(kit.redis_command(&["SREM", &key("priorities"), "7"]).await, redis::Value::Int(1));
    let maintenance = kit.start_maintenance();
    for [list, member] in lists {
        eventually(list, || async {
            (kit.redis_command(&["ZSCORE", list, member]).await != redis::Value::Nil).then_some(())
        })
        .await;
    }
    eventually("the priority", || async {
        (kit.redis_command(&["SISMEMBER", &key("priorities"), "7"]).await == redis::Value::Int(1)).then_some(())
    })
    .await;
    maintenance.stop().await;
}

#[tokio::test]
async fn a_queue_that_is_on_no_list_exists_all_the_same() {
    let kit = StoreKit::start();
    kit.enqueue(SCHEDULED).await;
    kit.redis_command(&["DEL", "galley:queues"]).await;
    assert!(kit.jobs.has_queue(&queue()).await.expect("redis runs"));
    assert_eq!(kit.jobs.list_queues().await.expect("redis runs"), [queue()]);
    assert!(!kit.jobs.has_queue(&"other".parse().expect("a name")).await.expect("redis runs"));
}

#[tokio::test]
async fn the_maintenance_mends_what_it_finds() {
    let kit = StoreKit::with_variables(&[("GALLEY__MAINTENANCE__SWEEP_MS", "50")]);
    let id = kit.enqueue(SCHEDULED).await;
    kit.enqueue(r#"{"type":"a","args":[],"queue":"other"}"#).await;
    kit.redis_command(&["ZREM", &key("due"), &id.to_string()]).await;
    kit.redis_command(&["ZREM", "galley:queues", "other"]).await;
    let maintenance = kit.start_maintenance();
    eventually("the job is due again, and the queue is known", || async {
        let is_due = kit.redis_command(&["ZSCORE", &key("due"), &id.to_string()]).await != redis::Value::Nil;
        (is_due && kit.jobs.list_queues().await.expect("redis runs").len() == 2).then_some(())
    })
    .await;
    maintenance.stop().await;
}

#[tokio::test]
async fn a_busy_queue_is_healthy_however_often_it_is_looked_over() {
    let kit = StoreKit::start();
    let bodies =
        [JOB_BODY, UNIQUE, KEYED, SCHEDULED, r#"{"type":"a","args":[],"priority":3,"total_timeout_ms":100000}"#];
    let busy = async |number: usize| {
        let worker = consumer();
        for turn in 0..60 {
            let _ = kit.try_enqueue(bodies[(turn + number) % bodies.len()]).await;
            for claimed in kit.claim(&worker, 2).await {
                let settled = match (turn + number) % 3 {
                    0 => kit.complete(&worker, &claimed, "1").await,
                    1 => {
                        let recorded =
                            kit.jobs.fail(&claimed, &fence(&worker), failure(1), RetryAdvice::ByPolicy).await;
                        if recorded.expect("redis runs").as_str() == "stale" { Settled::Stale } else { Settled::Done }
                    }
                    _ => kit.jobs.release(Attempt::of(&claimed, &fence(&worker))).await.expect("redis runs"),
                };
                assert_ne!(settled, Settled::AlreadyDone);
            }
            let by = Claimant::Pull { worker: None, lease: Some(Duration::from_mins(1)) };
            let pulled = kit.jobs.claim(&queue(), &mut Vec::new(), 1, by).await.expect("redis runs").jobs;
            for claimed in pulled {
                let _ = kit.jobs.cancel(claimed.job.id).await.expect("redis runs");
            }
        }
    };
    let looking = async {
        let mut found = Vec::new();
        for _ in 0..30 {
            found.extend(check(&kit, true).await);
        }
        found
    };
    let (found, ..) = tokio::join!(looking, busy(0), busy(1), busy(2), busy(3));
    assert_eq!(found, []);
    assert_eq!(check(&kit, true).await, []);
}
