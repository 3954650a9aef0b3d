use std::time::Duration;

use common::time::Millis;
use futures_util::future::join_all;
use model::cron::CronDefinition;
use serde_json::Value;
use store::cron::{RegisterCronError, RegisteredCronEntry};
use testkit::eventually;

use crate::kit::{StoreKit, consumer};

const EVERY_MINUTE: &str = r#"{"name":"tick","cron":"* * * * *","type":"test.tick","args":[1]}"#;

/// For tests that make the runs themselves: no other comes in between, wherever in a minute they are.
fn once_a_year() -> String {
    EVERY_MINUTE.replace("* * * * *", "0 0 1 1 *")
}
const MINUTE: Millis = 60_000;

impl StoreKit {
    async fn try_register(&self, body: &str) -> Result<RegisteredCronEntry, RegisterCronError> {
        let now = self.jobs.now().await.expect("redis runs");
        let definition =
            CronDefinition::parse(&serde_json::from_str(body).expect("JSON"), now).expect("a valid definition");
        self.jobs.cron().register(&definition, now).await.expect("redis runs")
    }

    async fn register(&self, body: &str) {
        self.try_register(body).await.expect("registered");
    }

    async fn cron(&self) -> Value {
        let entry = self.jobs.cron().get(&"tick".parse().expect("a name")).await.expect("redis runs");
        serde_json::from_str(&entry.expect("an entry").to_json()).expect("JSON")
    }

    async fn stored_entry(&self) -> Value {
        let raw = self.redis_command(&["HGET", "galley:{cron}:entries", "tick"]).await;
        serde_json::from_str(&redis::from_redis_value::<String>(raw).expect("text")).expect("JSON")
    }

    /// As if the entry had last been looked at before its run that many milliseconds ago; answers with that run.
    async fn due_since(&self, ago: Millis) -> Millis {
        let run = (self.jobs.now().await.expect("redis runs") - ago) / 1000 * 1000;
        let mut entry = self.stored_entry().await;
        entry["next_run_at"] = run.into();
        self.redis_command(&["HSET", "galley:{cron}:entries", "tick", &entry.to_string()]).await;
        self.redis_command(&["ZADD", "galley:{cron}:next", &run.to_string(), "tick"]).await;
        run
    }

    async fn wait_for_blocked(&self, clients: u64) {
        eventually("their writes wait", async || {
            let info = self.redis_command(&["INFO", "clients"]).await;
            let info: redis::InfoDict = redis::from_redis_value(info).expect("fields");
            info.get::<u64>("blocked_clients").filter(|blocked| *blocked >= clients)
        })
        .await;
    }

    async fn fire_due(&self) {
        assert_eq!(self.jobs.cron().fire_due().await.expect("redis runs"), 0, "no trouble");
    }

    async fn available(&self) -> u64 {
        self.jobs.queue_stats(&crate::kit::queue()).await.expect("redis runs").available
    }
}

#[tokio::test]
async fn five_maintainers_at_once_make_one_job_for_each_run() {
    let kit = StoreKit::start();
    kit.register(&once_a_year().replace("\"type\"", r#""overlap_policy":"allow","type""#)).await;
    for round in 1..=5 {
        kit.due_since(0).await;
        let five = (0..5).map(|_| async { kit.jobs.cron().fire_due().await.expect("redis runs") });
        assert_eq!(join_all(five).await, [0; 5]);
        assert_eq!(kit.available().await, round);
        assert_eq!(kit.cron().await["run_count"], round);
        // Runs are whole seconds: the next round must not be the same run
        let last = kit.cron().await["last_run_at"].clone();
        eventually("another second", || async {
            let now = common::time::format(kit.jobs.now().await.ok()? / 1000 * 1000);
            (last != now).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_client_that_is_killed_between_making_the_job_and_moving_on_leaves_one_job() {
    let kit = StoreKit::start();
    // An hour has one full hour in it. A second one between the two turns, which would be another run, is rare
    kit.register(&EVERY_MINUTE.replace("* * * * *", "0 * * * *")).await;
    kit.due_since(60 * MINUTE).await;
    let before = kit.redis_command(&["HGET", "galley:{cron}:entries", "tick"]).await;
    kit.fire_due().await;
    let first = kit.cron().await["last_job_id"].clone();
    // The job is there and the entry has not moved on: what a kill at that moment leaves
    let redis::Value::BulkString(before) = before else { panic!("{before:?}") };
    let before = String::from_utf8(before).expect("text");
    kit.redis_command(&["HSET", "galley:{cron}:entries", "tick", &before]).await;
    kit.redis_command(&["ZADD", "galley:{cron}:next", "1", "tick"]).await;
    kit.fire_due().await;
    assert_eq!(kit.available().await, 1);
    let entry = kit.cron().await;
    assert_eq!((&entry["last_job_id"], &entry["run_count"], &entry["missed_count"]), (&first, &1.into(), &1.into()));
    assert!(!kit.redis_keys().await.iter().any(|key| key.starts_with("galley:id:")), "the id names its queue itself");
}

#[tokio::test]
async fn a_job_of_a_run_is_an_ordinary_one_that_names_its_entry() {
    let kit = StoreKit::start();
    kit.register(&once_a_year()).await;
    let run = kit.due_since(0).await;
    kit.fire_due().await;
    let claimed = kit.claim_one(&consumer()).await;
    let job = kit.job(claimed.job.id).await;
    assert_eq!((&job["type"], &job["args"], &job["state"]), (&"test.tick".into(), &vec![1].into(), &"active".into()));
    assert_eq!(job["metadata"]["cron_name"], "tick");
    assert_eq!(job["metadata"]["cron_triggered_at"], common::time::format(run));
    assert_eq!(kit.cron().await["last_job_id"], job["id"]);
}

#[tokio::test]
async fn a_run_is_skipped_while_the_last_job_is_not_over_in_whatever_state() {
    let kit = StoreKit::start();
    kit.register(&once_a_year()).await;
    kit.due_since(3000).await;
    kit.fire_due().await;
    kit.due_since(2000).await;
    kit.fire_due().await;
    assert_eq!((kit.available().await, kit.cron().await["skipped_count"].as_u64()), (1, Some(1)), "available");
    let worker = consumer();
    let claimed = kit.claim_one(&worker).await;
    kit.due_since(1000).await;
    kit.fire_due().await;
    assert_eq!((kit.available().await, kit.cron().await["skipped_count"].as_u64()), (0, Some(2)), "active");
    kit.complete(&worker, &claimed, "1").await;
    kit.due_since(0).await;
    kit.fire_due().await;
    let entry = kit.cron().await;
    assert_eq!((kit.available().await, &entry["run_count"], &entry["skipped_count"]), (1, &2.into(), &2.into()));
}

#[tokio::test]
async fn the_last_job_is_cancelled_first_where_the_policy_says_so() {
    let kit = StoreKit::start();
    kit.register(&once_a_year().replace("\"type\"", r#""overlap_policy":"cancel_previous","type""#)).await;
    kit.due_since(2000).await;
    kit.fire_due().await;
    let first = kit.claim_one(&consumer()).await.job.id;
    kit.due_since(1000).await;
    kit.fire_due().await;
    assert_eq!((kit.state(first).await.as_str(), kit.available().await), ("cancelled", 1));
}

#[tokio::test]
async fn a_run_that_must_not_overlap_waits_until_the_last_job_is_over() {
    let kit = StoreKit::start();
    kit.register(&once_a_year().replace("\"type\"", r#""overlap_policy":"enqueue","type""#)).await;
    let worker = consumer();
    kit.due_since(3000).await;
    kit.fire_due().await;
    let first = kit.claim_one(&worker).await;
    for ago in [2000, 1000] {
        kit.due_since(ago).await;
        kit.fire_due().await;
    }
    assert_eq!((kit.available().await, kit.cron().await["waiting_count"].as_u64()), (0, Some(2)));
    let maintenance = kit.start_maintenance();
    kit.complete(&worker, &first, "1").await;
    eventually("the second runs", || async { (kit.available().await == 1).then_some(()) }).await;
    let second = kit.claim_one(&worker).await;
    kit.complete(&worker, &second, "1").await;
    eventually("the third runs", || async { (kit.available().await == 1).then_some(()) }).await;
    maintenance.stop().await;
    let entry = kit.cron().await;
    assert_eq!(
        (&entry["waiting_count"], &entry["run_count"], &entry["skipped_count"]),
        (&0.into(), &3.into(), &0.into())
    );
}

#[tokio::test]
async fn of_missed_runs_the_newest_is_made_up_for_and_the_rest_counted() {
    let kit = StoreKit::start();
    kit.register(EVERY_MINUTE).await;
    kit.due_since(30 * MINUTE).await;
    kit.fire_due().await;
    let entry = kit.cron().await;
    assert_eq!((kit.available().await, &entry["run_count"]), (1, &1.into()));
    assert!((29..=31).contains(&entry["missed_count"].as_u64().expect("a number")), "{entry}");
    assert!(entry["next_run_at"].as_str() > entry["last_run_at"].as_str(), "{entry}");
}

#[tokio::test]
async fn what_was_missed_too_long_ago_is_not_made_up_for() {
    let kit = StoreKit::with_variables(&[("GALLEY__CRON__CATCH_UP_MAX", "5")]);
    kit.register(&EVERY_MINUTE.replace("* * * * *", "@every 2h")).await;
    kit.due_since(70 * MINUTE).await;
    kit.fire_due().await;
    let entry = kit.cron().await;
    assert_eq!((kit.available().await, &entry["run_count"], &entry["missed_count"]), (0, &0.into(), &1.into()));
}

#[tokio::test]
async fn the_maintenance_fires_by_the_clock_and_starts_again_after_redis_was_emptied() {
    let kit = StoreKit::start();
    let maintenance = kit.start_maintenance();
    let every_second =
        EVERY_MINUTE.replace("* * * * *", "* * * * * *").replace("\"type\"", r#""overlap_policy":"allow","type""#);
    for _ in 0..2 {
        kit.register(&every_second).await;
        eventually("three runs", || async { (kit.cron().await["run_count"].as_u64()? >= 3).then_some(()) }).await;
        kit.redis_command(&["FLUSHDB"]).await;
    }
    // Stopped first: a full minute may begin right after the registration
    maintenance.stop().await;
    kit.register(EVERY_MINUTE).await;
    assert_eq!(kit.cron().await["run_count"], 0);
}

#[tokio::test]
async fn an_entry_that_appears_in_front_of_the_others_wakes_the_maintenance() {
    let kit = StoreKit::with_variables(&[("GALLEY__MAINTENANCE__SWEEP_MS", "600000")]);
    let maintenance = kit.start_maintenance();
    kit.register(&EVERY_MINUTE.replace("* * * * *", "@yearly")).await;
    let holds =
        || async { (kit.redis_command(&["EXISTS", "galley:leader"]).await == redis::Value::Int(1)).then_some(()) };
    eventually("somebody is the leader", holds).await;
    let listens = || async {
        let reply = kit.redis_command(&["PUBSUB", "NUMSUB", "galley:5:notifications"]).await;
        matches!(&reply, redis::Value::Array(pair) if pair.get(1) == Some(&redis::Value::Int(1))).then_some(())
    };
    eventually("the maintainer listens", listens).await;
    kit.register(&EVERY_MINUTE.replace("* * * * *", "@every 1s").replace("tick\"", "tock\"")).await;
    eventually("it runs", || async { (kit.available().await >= 1).then_some(()) }).await;
    maintenance.stop().await;
}

#[tokio::test]
async fn registering_again_changes_the_entry_and_keeps_its_counts() {
    let kit = StoreKit::start();
    assert!(kit.try_register(EVERY_MINUTE).await.expect("registered").is_new);
    kit.due_since(0).await;
    kit.fire_due().await;
    let before = kit.cron().await;
    let again = kit.try_register(&EVERY_MINUTE.replace("test.tick", "test.tock")).await.expect("registered");
    assert!(!again.is_new);
    let after = kit.cron().await;
    assert_eq!(after["job_template"]["type"], "test.tock");
    for kept in ["created_at", "run_count", "last_job_id", "last_run_at", "next_run_at"] {
        assert_eq!(before[kept], after[kept], "{kept}");
    }
}

#[tokio::test]
async fn an_entry_that_is_off_does_not_run_and_one_that_is_gone_leaves_nothing() {
    let kit = StoreKit::start();
    let name = "tick".parse().expect("a name");
    kit.register(EVERY_MINUTE).await;
    let off = kit.jobs.cron().set_enabled(&name, false).await.expect("redis runs").expect("an entry");
    assert_eq!((off.enabled, off.next_run_at), (false, None));
    assert_eq!(kit.redis_command(&["ZCARD", "galley:{cron}:next"]).await, redis::Value::Int(0));
    // Somebody's stale hand: it is not run, and forgotten again
    kit.redis_command(&["ZADD", "galley:{cron}:next", "1", "tick", "1", "ghost", "1", "No Name"]).await;
    kit.fire_due().await;
    assert_eq!(
        (kit.available().await, kit.redis_command(&["ZCARD", "galley:{cron}:next"]).await),
        (0, redis::Value::Int(0))
    );
    let on = kit.jobs.cron().set_enabled(&name, true).await.expect("redis runs").expect("an entry");
    assert!(on.next_run_at.is_some());
    assert!(kit.jobs.cron().remove(&name).await.expect("redis runs"));
    assert!(!kit.jobs.cron().remove(&name).await.expect("redis runs"));
    assert!(kit.redis_keys().await.is_empty(), "{:?}", kit.redis_keys().await);
}

#[tokio::test]
async fn there_are_no_more_entries_than_allowed_and_none_is_too_large() {
    let kit = StoreKit::with_variables(&[("GALLEY__CRON__MAX_ENTRIES", "2")]);
    kit.register(EVERY_MINUTE).await;
    kit.register(&EVERY_MINUTE.replace("tick\"", "two\"")).await;
    let third = kit.try_register(&EVERY_MINUTE.replace("tick\"", "three\"")).await;
    assert_eq!(third.map(|registered| registered.is_new), Err(RegisterCronError::TooMany { max_entries: 2 }));
    kit.register(EVERY_MINUTE).await;
    let large = EVERY_MINUTE.replace("[1]", &format!("[\"{}\"]", "x".repeat(66_000)));
    assert!(matches!(kit.try_register(&large).await, Err(RegisterCronError::TooLarge { .. })));
    let page = kit.jobs.cron().page(None, 1, |_| true).await.expect("redis runs");
    assert_eq!((page.entries.len(), page.total, page.next.as_deref()), (1, 2, Some("tick")));
    let rest = kit.jobs.cron().page(Some("tick"), 1, |_| true).await.expect("redis runs");
    assert_eq!((rest.entries[0].name.as_str(), rest.next), ("two", None));
}

#[tokio::test]
async fn an_entry_that_cannot_be_read_keeps_no_other_from_running_and_can_be_replaced() {
    let kit = StoreKit::start();
    kit.redis_command(&["HSET", "galley:{cron}:entries", "broken", "{"]).await;
    kit.redis_command(&["ZADD", "galley:{cron}:next", "1", "broken"]).await;
    kit.register(EVERY_MINUTE).await;
    kit.due_since(0).await;
    assert_eq!(kit.jobs.cron().fire_due().await.expect("redis runs"), 1, "one is in trouble");
    assert_eq!(kit.available().await, 1);
    kit.fire_due().await;
    kit.register(&EVERY_MINUTE.replace("tick\"", "broken\"")).await;
    assert_eq!(kit.jobs.cron().page(None, 10, |_| true).await.expect("redis runs").entries.len(), 2);
}

#[tokio::test]
async fn a_job_made_by_hand_is_beside_the_schedule() {
    let kit = StoreKit::start();
    kit.register(EVERY_MINUTE).await;
    let name = "tick".parse().expect("a name");
    for _ in 0..2 {
        kit.jobs
            .cron()
            .trigger(&name, common::trace_context::TraceContext::default())
            .await
            .expect("redis runs")
            .expect("an entry")
            .expect("enqueued");
    }
    assert_eq!((kit.available().await, kit.cron().await["run_count"].as_u64()), (2, Some(0)));
    kit.due_since(0).await;
    kit.fire_due().await;
    assert_eq!(kit.available().await, 3, "no run waits for it");
    let nobody = "nobody".parse().expect("a name");
    assert!(
        kit.jobs
            .cron()
            .trigger(&nobody, common::trace_context::TraceContext::default())
            .await
            .expect("redis runs")
            .is_none()
    );
}

#[tokio::test]
async fn a_full_redis_keeps_a_run_until_there_is_room() {
    let kit = StoreKit::start();
    kit.register(EVERY_MINUTE).await;
    kit.due_since(0).await;
    kit.redis_command(&["CONFIG", "SET", "maxmemory", "1"]).await;
    assert_eq!(kit.jobs.cron().fire_due().await.expect("redis runs"), 1, "in trouble");
    kit.redis_command(&["CONFIG", "SET", "maxmemory", "0"]).await;
    let maintenance = kit.start_maintenance();
    eventually("it runs", || async { (kit.available().await == 1).then_some(()) }).await;
    maintenance.stop().await;
    assert_eq!(kit.cron().await["run_count"], 1);
    assert!(kit.settings.cron.catch_up_window > Duration::ZERO);
}

#[tokio::test]
async fn an_entry_that_is_registered_anew_in_the_middle_of_a_run_does_not_count_it() {
    let kit = StoreKit::start();
    kit.register(&once_a_year()).await;
    let mut anew = kit.stored_entry().await;
    kit.due_since(0).await;
    anew["created_at"] = (anew["created_at"].as_i64().expect("a time") + 1).into();
    kit.redis_command(&["CLIENT", "PAUSE", "600000", "WRITE"]).await;
    let replaced = async {
        // The run has read its entry and is about to make its job
        kit.wait_for_blocked(1).await;
        let (entry, replace) = (anew.to_string(), "redis.call('HSET', KEYS[1], 'tick', ARGV[1])");
        let words = ["EVAL", replace, "1", "galley:{cron}:entries", &entry];
        let release = async {
            kit.wait_for_blocked(2).await;
            kit.redis_command(&["CLIENT", "UNPAUSE"]).await;
        };
        futures_util::join!(kit.redis_command(&words), release);
    };
    futures_util::join!(kit.fire_due(), replaced);
    assert_eq!(kit.available().await, 1, "the job of the run was made");
    let entry = kit.cron().await;
    assert_eq!((&entry["run_count"], &entry["last_run_at"]), (&0.into(), &Value::Null), "{entry}");
}
