//! One leader follows another.

use std::time::Duration;

use testkit::{RedisServer, eventually};

use crate::kit::{JOB_BODY, StoreKit};

const LEADER_LEASE: (&str, &str) = ("GALLEY__MAINTENANCE__LEADER_LEASE_MS", "3000");
const HOUR: Duration = Duration::from_hours(1);

#[tokio::test]
async fn a_new_leader_heals_a_step_of_the_clock_that_came_while_nobody_led() {
    let kit = StoreKit::with_server(RedisServer::start_with_clock(), &[LEADER_LEASE]);
    let next = StoreKit::with_variables(&[LEADER_LEASE, ("GALLEY__REDIS__URL", &kit.server.url())]);
    let leader = kit.start_maintenance();
    let noted = || async {
        let answer = kit.redis_command(&["GET", "galley:{galley:leader}:clock"]).await;
        redis::from_redis_value::<Option<i64>>(answer).expect("a number")
    };
    let first = eventually("it leads", noted).await;
    // Connected, so that it asks for the lease at once
    next.redis.ping().await.expect("redis runs");
    let successor = next.start_maintenance();
    kit.enqueue(JOB_BODY).await;
    kit.pull(Some(Duration::from_mins(20))).await.expect("a job");
    // The successor has asked for the lease by the time that the leader noted two more times
    let second = eventually("it leads on", || async { noted().await.filter(|at| *at > first) }).await;
    eventually("it leads on", || async { noted().await.filter(|at| *at > second) }).await;
    leader.stop().await;
    kit.server.clock().set_ahead(HOUR);
    eventually("what was left of the lease is left again", || async {
        let leases = kit.redis_command(&["ZRANGE", "galley:{default}:leases", "0", "-1", "WITHSCORES"]).await;
        let [(_, expiry)]: [(String, f64); 1] = redis::from_redis_value::<Vec<_>>(leases).ok()?.try_into().ok()?;
        let now: f64 = kit.jobs.now().await.ok()?.to_string().parse().ok()?;
        (expiry > now).then_some(())
    })
    .await;
    successor.stop().await;
}
