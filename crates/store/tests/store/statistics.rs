//! The history of statistics: what is counted is shown once, whatever dies, and does not grow without bound.

use common::name::QueueName;
use model::{
    job::RetryAdvice,
    statistics::{Tally, write_varint},
};
use store::{
    maintenance,
    statistics::{Series, Statistics, StatisticsFolder, tidy_all},
};
use testkit::{RedisServer, eventually, redis};

use crate::kit::{JOB_BODY, StoreKit, consumer, failure, fence, queue};

const MINUTE_MS: i64 = 60_000;
const HOUR_MS: i64 = 60 * MINUTE_MS;
const DAY_MS: i64 = 24 * HOUR_MS;
/// Processes send what they counted at once.
const QUICK: [(&str, &str); 1] = [("GALLEY__STATISTICS__FLUSH_MS", "100")];

async fn sum(kit: &StoreKit, series: &Series, period: i64, since: i64) -> Tally {
    let until = kit.jobs.now().await.expect("redis runs");
    let points = Statistics::new(&kit.jobs).history(series, period, until + since, until).await.expect("redis runs");
    let mut sum = Tally::default();
    for point in &points {
        sum.merge(&point.tally);
    }
    sum
}

fn only(name: &str) -> Series {
    Series::Queues(vec![name.parse::<QueueName>().expect("a name")])
}

/// Sends a sum as a process does.
async fn send(kit: &StoreKit, process: &str, number: u64, sums: &[(&str, i64, &Tally)]) {
    let mut bytes = Vec::new();
    for (queue, at, tally) in sums {
        write_varint(&mut bytes, queue.len() as u64);
        bytes.extend_from_slice(queue.as_bytes());
        write_varint(&mut bytes, at.div_euclid(MINUTE_MS).unsigned_abs());
        tally.encode(&mut bytes);
    }
    let mut command = redis::cmd("XADD");
    command.arg("galley:{statistics}:flushes").arg("*").arg("p").arg(process).arg("n").arg(number).arg("d").arg(bytes);
    let _: String = command.query_async(&mut kit.server.connection().await).await.expect("redis runs");
}

fn enqueued(count: u64) -> Tally {
    Tally { enqueued: count, ..Tally::default() }
}

async fn fold(kit: &StoreKit) {
    StatisticsFolder::default().run_round(&kit.jobs).await.expect("redis runs");
}

#[tokio::test]
async fn what_happens_to_jobs_is_shown_before_and_after_it_is_folded() {
    let kit = StoreKit::with_variables(&QUICK);
    let consumer = consumer();
    for _ in 0..5 {
        kit.enqueue(JOB_BODY).await;
    }
    let claimed = kit.claim(&consumer, 3).await;
    kit.jobs.report_completed(&claimed[0], claimed[0].started_at + 500);
    let advice = [RetryAdvice::ByPolicy, RetryAdvice::Never];
    for (claimed, advice) in claimed[1..].iter().zip(advice) {
        kit.jobs.fail(claimed, &fence(&consumer), failure(1), advice).await.expect("redis runs");
    }
    let waiting = kit.pull(None).await.expect("a job waits").job.id;
    kit.jobs.cancel(waiting).await.expect("redis runs").expect("it is not over");
    let shown = || async {
        let sum = sum(&kit, &only("default"), MINUTE_MS, -HOUR_MS).await;
        let counts = (sum.enqueued, sum.completed, sum.failed, sum.discarded, sum.cancelled);
        (counts == (5, 1, 2, 1, 1)).then_some(sum)
    };
    let before = eventually("all of it is sent", shown).await;
    assert!(before.run.percentile(99).is_some_and(|longest| longest.abs_diff(500) <= 63), "{before:?}");
    assert_eq!(before.wait.buckets().map(|(_, count)| count).sum::<u64>(), 3);
    fold(&kit).await;
    assert_eq!(shown().await.as_ref(), Some(&before));
    for (series, period) in [(&Series::All, MINUTE_MS), (&Series::All, DAY_MS), (&only("default"), HOUR_MS)] {
        assert_eq!(sum(&kit, series, period, -HOUR_MS).await, before);
    }
    assert_eq!(kit.redis_command(&["XLEN", "galley:{statistics}:flushes"]).await, redis::Value::Int(0));
}

#[tokio::test]
async fn a_sum_counts_once_however_often_it_is_sent_and_folded() {
    let kit = StoreKit::start();
    let now = kit.jobs.now().await.expect("redis runs");
    for number in 1..=200_u64 {
        send(&kit, "p", number, &[("a", now, &enqueued(1))]).await;
        // The answer was lost
        send(&kit, "p", number, &[("a", now, &enqueued(1))]).await;
    }
    let folds = (0..4).map(|_| fold(&kit));
    futures_util::future::join_all(folds).await;
    assert_eq!(sum(&kit, &only("a"), MINUTE_MS, -HOUR_MS).await.enqueued, 200);
    assert_eq!(sum(&kit, &Series::All, HOUR_MS, -HOUR_MS).await.enqueued, 200);
}

#[tokio::test]
async fn minutes_become_hours_after_a_day_and_hours_are_removed_after_thirty() {
    let kit = StoreKit::start();
    let now = kit.jobs.now().await.expect("redis runs");
    let ages = [0, HOUR_MS, 26 * HOUR_MS, 27 * HOUR_MS, 20 * DAY_MS, 40 * DAY_MS];
    for (number, age) in (1..).zip(ages) {
        for minute in 0..3 {
            let at = now - age - minute * MINUTE_MS;
            send(&kit, "p", number * 10 + minute.unsigned_abs(), &[("a", at, &enqueued(1))]).await;
        }
    }
    // A clock that was ahead by a year
    send(&kit, "p", 1000, &[("a", now + 365 * DAY_MS, &enqueued(1))]).await;
    fold(&kit).await;
    tidy_all(&kit.jobs).await.expect("redis runs");
    tidy_all(&kit.jobs).await.expect("redis runs");
    assert_eq!(sum(&kit, &only("a"), HOUR_MS, -29 * DAY_MS).await.enqueued, 16);
    assert_eq!(sum(&kit, &only("a"), DAY_MS, -29 * DAY_MS).await.enqueued, 16);
    assert_eq!(sum(&kit, &only("a"), MINUTE_MS, -29 * DAY_MS).await.enqueued, 7);
    let fields = kit.redis_command(&["HKEYS", "galley:{statistics}:history:a"]).await;
    let fields: Vec<String> = redis::from_redis_value(fields).expect("names");
    let days = fields.iter().filter(|field| field.starts_with('d')).count();
    assert!((2..=4).contains(&days) && fields.len() <= days + 3, "{fields:?}");
}

#[tokio::test]
async fn queues_beyond_the_cap_have_one_history_together() {
    let kit = StoreKit::with_variables(&[("GALLEY__STATISTICS__MAX_QUEUES", "2")]);
    let now = kit.jobs.now().await.expect("redis runs");
    let names: Vec<String> = (0..50).map(|number| format!("q{number}")).collect();
    for round in 1..=2 {
        let one = enqueued(1);
        let sums: Vec<(&str, i64, &Tally)> = names.iter().map(|name| (name.as_str(), now, &one)).collect();
        send(&kit, "p", round, &sums).await;
        fold(&kit).await;
    }
    assert_eq!(Statistics::new(&kit.jobs).queues().await.expect("redis runs").len(), 2);
    assert_eq!(sum(&kit, &Series::All, MINUTE_MS, -HOUR_MS).await.enqueued, 100);
    let histories = kit.redis_command(&["KEYS", "galley:{statistics}:history:*"]).await;
    let histories: Vec<String> = redis::from_redis_value(histories).expect("names");
    assert_eq!(histories.len(), 4, "two queues, the others and all: {histories:?}");
}

#[tokio::test]
async fn garbage_among_the_sums_is_removed_and_stops_nothing() {
    let kit = StoreKit::start();
    let now = kit.jobs.now().await.expect("redis runs");
    for garbage in ["", "\u{1}", "zzzzzzzzzzzzzzzzzzzz", "\u{7f}\u{7f}\u{7f}"] {
        kit.redis_command(&["XADD", "galley:{statistics}:flushes", "*", "p", "x", "n", "1", "d", garbage]).await;
        kit.redis_command(&["XADD", "galley:{statistics}:flushes", "*", "n", "many", "other", garbage]).await;
    }
    kit.redis_command(&["HSET", "galley:{statistics}:history:a", "m7", "~~~~", "dx", "", "x", "y"]).await;
    send(&kit, "p", 1, &[("a", now, &enqueued(3)), ("b", now, &enqueued(4))]).await;
    assert_eq!(sum(&kit, &only("a"), MINUTE_MS, -HOUR_MS).await.enqueued, 3);
    fold(&kit).await;
    tidy_all(&kit.jobs).await.expect("redis runs");
    assert_eq!(sum(&kit, &Series::All, HOUR_MS, -HOUR_MS).await.enqueued, 7);
    assert_eq!(kit.redis_command(&["XLEN", "galley:{statistics}:flushes"]).await, redis::Value::Int(0));
    assert_eq!(kit.redis_command(&["HLEN", "galley:{statistics}:history:a"]).await, redis::Value::Int(1));
}

#[tokio::test]
async fn a_step_of_the_clock_loses_no_sum_and_leaves_nothing_behind() {
    let kit = StoreKit::with_server(RedisServer::start_with_clock(), &QUICK);
    kit.enqueue(JOB_BODY).await;
    let is_sent = |count: u64| {
        let kit = &kit;
        eventually("it is shown", move || async move {
            let sum = sum(kit, &Series::All, DAY_MS, -29 * DAY_MS).await;
            (sum.enqueued == count).then_some(())
        })
    };
    is_sent(1).await;
    fold(&kit).await;
    kit.server.clock().set_ahead(std::time::Duration::from_hours(10));
    kit.enqueue(JOB_BODY).await;
    is_sent(2).await;
    fold(&kit).await;
    kit.server.clock().set_ahead(std::time::Duration::ZERO);
    kit.jobs.now().await.expect("redis runs");
    fold(&kit).await;
    tidy_all(&kit.jobs).await.expect("redis runs");
    let fields = kit.redis_command(&["HLEN", "galley:{statistics}:history:_all"]).await;
    assert!(matches!(fields, redis::Value::Int(1..=3)), "{fields:?}");
}

#[tokio::test]
async fn the_history_of_a_deleted_queue_goes_with_it_and_the_leader_folds_by_itself() {
    let kit = StoreKit::with_variables(&QUICK);
    let maintenance = kit.start_maintenance();
    let id = kit.enqueue(JOB_BODY).await;
    let key = "galley:{statistics}:history:default";
    let exists = |wanted: i64| {
        let kit = &kit;
        eventually("the history is there or gone", move || async move {
            (kit.redis_command(&["EXISTS", key]).await == redis::Value::Int(wanted)).then_some(())
        })
    };
    exists(1).await;
    kit.jobs.cancel(id).await.expect("redis runs").expect("it waits");
    eventually("it is counted", || async {
        (sum(&kit, &Series::All, MINUTE_MS, -HOUR_MS).await.cancelled == 1).then_some(())
    })
    .await;
    maintenance.stop().await;
    fold(&kit).await;
    assert!(kit.jobs.delete_queue(&queue()).await.expect("redis runs"));
    assert_eq!(kit.redis_command(&["EXISTS", key]).await, redis::Value::Int(0));
    maintenance::run_once(&kit.jobs, &queue()).await.expect("redis runs");
}
