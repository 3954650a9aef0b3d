//! The clock of Redis is set back and ahead again before the leader notices.

use std::{
    cell::RefCell,
    time::{Duration, Instant},
};

use common::id::JobId;
use model::job::{JobLogLine, LogLevel};
use store::{
    jobs::{Attempt, ClaimedJob, Consumer, Fence},
    maintenance::{self, SilenceWatch},
};
use testkit::{RedisServer, eventually, eventually_for, redis};

use crate::kit::{JOB_BODY, StoreKit, consumer, queue};

const HOUR: Duration = Duration::from_hours(1);
const LEASE: Duration = Duration::from_mins(30);
const TOKEN: &str = "00112233445566778899aabbccddeeff";

fn by_token(token: Option<&str>) -> Fence {
    Fence::Pull { token: token.map(ToOwned::to_owned), worker: None }
}

async fn pull(kit: &StoreKit, lease: Duration) -> ClaimedJob {
    kit.pull(Some(lease)).await.expect("a job")
}

async fn attempt_and_state(kit: &StoreKit, id: JobId) -> (u64, String) {
    let job = kit.job(id).await;
    (job["attempt"].as_u64().expect("a number"), job["state"].as_str().expect("a state").to_owned())
}

#[tokio::test]
async fn no_lease_that_starts_between_two_opposite_steps_of_the_clock_ends_early() {
    let kit = StoreKit::with_server(RedisServer::start_with_clock(), &[]);
    let (worker, name) = (consumer(), "w".parse().expect("a name"));
    // All before the step: to enqueue is to read the clock
    for _ in 0..5 {
        kit.enqueue(JOB_BODY).await;
    }
    let handed_over = kit.claim_one(&worker).await;
    let (renewed, logged) = (pull(&kit, LEASE).await, pull(&kit, LEASE).await);

    kit.server.clock().set_behind(HOUR);
    let pulled = pull(&kit, LEASE).await;
    let [renewing, logging] = [&renewed, &logged].map(|claimed| by_token(claimed.token.as_deref()));
    assert!(kit.jobs.heartbeat(Attempt::of(&renewed, &renewing), None).await.expect("redis runs"));
    let line = JobLogLine { at: 0, level: LogLevel::Info, message: "a".to_owned() };
    assert!(kit.jobs.write_log(Attempt::of(&logged, &logging), 1, &[line]).await.expect("redis runs"));
    let issued = kit.jobs.issue_callback_token(&handed_over, &worker, &name, TOKEN, Some(LEASE)).await;
    assert!(issued.expect("redis runs"));
    // The process that leases them may have seen the step, and the leader not
    let before_it_sees = Instant::now();
    kit.jobs.now().await.expect("redis runs");
    let pulled_later = pull(&kit, LEASE).await;
    // It remembers the clock as it was for ten seconds
    let is_remembered = before_it_sees.elapsed() < Duration::from_secs(9);
    kit.server.clock().set_ahead(Duration::ZERO);

    // A leader that has seen no step of the clock
    let leader = StoreKit::with_variables(&[("GALLEY__REDIS__URL", &kit.server.url())]);
    maintenance::run_once(&leader.jobs, &queue()).await.expect("redis runs");
    let later = Some(&pulled_later).filter(|_| is_remembered);
    for claimed in [&pulled, &renewed, &logged, &handed_over].into_iter().chain(later) {
        let (attempt, state) = attempt_and_state(&kit, claimed.job.id).await;
        assert_eq!((attempt, state.as_str()), (1, "active"), "job {}", claimed.job.id);
    }
}

#[tokio::test]
async fn a_lease_that_starts_after_the_clock_was_set_back_is_shortened_by_the_leader() {
    // After a step, silence counts when a whole lease of this length is over
    let kit = StoreKit::with_server(RedisServer::start_with_clock(), &[("GALLEY__JOBS__LEASE_MS", "2000")]);
    let leader = kit.start_maintenance();
    let noted = async || {
        let at = kit.redis_command(&["GET", "galley:{galley:leader}:clock"]).await;
        redis::from_redis_value::<Option<i64>>(at).expect("a number or nothing")
    };
    let before = eventually("a leader has noted the time", &noted).await;
    kit.enqueue(JOB_BODY).await;
    // A queue that is damaged keeps no other from being healed
    kit.enqueue(r#"{"type":"a","args":[],"queue":"damaged"}"#).await;
    kit.redis_command(&["SET", "galley:{damaged}:leases", "x"]).await;
    kit.server.clock().set_behind(HOUR);
    eventually("it has healed the step", || async { noted().await.filter(|at| *at < before) }).await;
    // By the clock before the step, which this process remembers for a while, it would end in an hour
    let claimed = pull(&kit, Duration::from_secs(1)).await;
    eventually_for(Duration::from_mins(2), "the lease is over", || async {
        (kit.state(claimed.job.id).await == "available").then_some(())
    })
    .await;
    leader.stop().await;
}

#[tokio::test]
async fn a_job_that_a_worker_claims_between_two_opposite_steps_of_the_clock_stays_its_own() {
    let kit = StoreKit::with_server(RedisServer::start_with_clock(), &[]);
    kit.enqueue(JOB_BODY).await;
    let worker = Consumer::new(HOUR / 2);
    kit.server.clock().set_behind(HOUR);
    let claimed = kit.claim_one(&worker).await;
    kit.server.clock().set_ahead(Duration::ZERO);

    // A leader that has seen no step of the clock, but looks twice
    let leader = StoreKit::with_variables(&[("GALLEY__REDIS__URL", &kit.server.url())]);
    let mut watch = SilenceWatch::default();
    for _ in 0..2 {
        maintenance::run_once_watching(&leader.jobs, &queue(), &mut watch).await.expect("redis runs");
        assert_eq!(attempt_and_state(&kit, claimed.job.id).await.1, "active");
    }
    // A watch that is off sees a silence of an hour
    maintenance::run_once(&leader.jobs, &queue()).await.expect("redis runs");
    assert_eq!(attempt_and_state(&kit, claimed.job.id).await.1, "available");
}

#[tokio::test]
async fn a_worker_that_stays_silent_loses_its_job_to_a_leader_that_watches() {
    let kit = StoreKit::start();
    kit.enqueue(JOB_BODY).await;
    let claimed = kit.claim_one(&Consumer::new(Duration::from_secs(1))).await;
    let watch = RefCell::new(SilenceWatch::default());
    eventually("its lease is over", || async {
        let mut so_far = watch.take();
        maintenance::run_once_watching(&kit.jobs, &queue(), &mut so_far).await.expect("redis runs");
        watch.replace(so_far);
        (kit.state(claimed.job.id).await == "available").then_some(())
    })
    .await;
}
