//! A failover of Redis Sentinel under load: how soon gateways answer again, and what of the acknowledged jobs is lost, with
//! and without a replica that confirms them.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::Context;
use serde_json::Value;
use testkit::{
    RedisServer, SentinelSet, ServiceProcess,
    http::{HttpConnection, post_request},
    redis,
};
use tokio::{
    task::spawn_blocking,
    time::{sleep, timeout},
};

use crate::{
    galley::{job_id, noop_job},
    numbers::count_as_f64,
    open_load::{connect_times, send_at_pace},
    report::BenchReport,
    stored_jobs::are_stored,
};

const QUEUE: &str = "failover";
const PER_SECOND: u32 = 2000;
const SECONDS: u32 = 20;
/// When the primary is killed.
const KILLED_AFTER: Duration = Duration::from_secs(4);
/// After how long without an answer the primary counts as down.
const DOWN_AFTER: Duration = Duration::from_secs(1);
/// One that waits for an answer does not hold up the others.
const CONNECTIONS: usize = 256;
/// Longest wait for the replica.
const CONFIRM_MS: u32 = 200;
/// Longest wait for a promotion.
const PROMOTION_TIMEOUT: Duration = Duration::from_mins(1);
/// Between two looks at the replica.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// A POST that was answered.
struct Answered {
    sent: Instant,
    ended: Instant,
    status: u16,
    id: Option<String>,
}

impl Answered {
    fn is_stored(&self) -> bool {
        self.status == 201 || self.status == 202
    }
}

type Answers = Arc<Mutex<Vec<Answered>>>;

pub(crate) async fn run() -> anyhow::Result<BenchReport> {
    let mut report = BenchReport::new("failover");
    report.add_note(format!(
        "{PER_SECOND} jobs a second on {CONNECTIONS} connections; a primary, a replica, three sentinels; kill -9 of the primary. \
         Afterwards no replica is left: what waits for one is answered after {CONFIRM_MS} ms"
    ));
    for (name, replicas) in [("", "0"), ("durability.replicas = 1: ", "1")] {
        fail_over(&mut report, name, replicas).await?;
    }
    Ok(report)
}

async fn fail_over(report: &mut BenchReport, name: &str, replicas: &str) -> anyhow::Result<()> {
    let SentinelSet { mut primary, replica, sentinels } = SentinelSet::start().await;
    sentinels.set_down_after(DOWN_AFTER).await;
    let url = sentinels.url();
    let confirm_ms = CONFIRM_MS.to_string();
    let wanted = [("GALLEY__DURABILITY__REPLICAS", replicas), ("GALLEY__DURABILITY__TIMEOUT_MS", confirm_ms.as_str())];
    let gateway = ServiceProcess::start_with_redis_url("gateway", &url, &wanted).await;
    let worker = [("GALLEY__QUEUE_WORKER__QUEUES", QUEUE), ("GALLEY__BRIDGE__LIST", "")];
    let worker = ServiceProcess::start_with_redis_url("queue-worker", &url, &worker).await;
    gateway.wait_until_ready().await;
    worker.wait_until_ready().await;

    let (began, answers) = (Instant::now(), Answers::default());
    let load = tokio::spawn(send_load(gateway.address(), answers.clone()));
    sleep(KILLED_AFTER.saturating_sub(began.elapsed())).await;
    let (primary, killed) = spawn_blocking(move || {
        primary.kill();
        (primary, Instant::now())
    })
    .await?;
    let promoted = timeout(PROMOTION_TIMEOUT, promotion_of(&replica)).await.context("nobody was promoted")?;
    load.await??;
    let answers = std::mem::take(&mut *answers.lock().unwrap_or_else(PoisonError::into_inner));
    let again = answers.iter().filter(|answer| answer.is_stored() && answer.sent > killed).map(|answer| answer.ended);
    let again = again.min().context("no job was stored after the failover")?;

    let seconds = |from: Instant, to: Instant| to.saturating_duration_since(from).as_secs_f64();
    report.add_figure(format!("{name}from the kill until the replica is the primary"), seconds(killed, promoted), "s");
    let goal = "<= 2";
    report.add_with_goal(
        format!("{name}from then until the gateway stores jobs again"),
        seconds(promoted, again),
        "s",
        goal,
    );
    let refused = answers.iter().filter(|answer| !answer.is_stored()).count();
    report.add_figure(format!("{name}requests that were not acknowledged"), count_as_f64(refused as u64), "");
    count_lost(report, name, &gateway, &answers).await?;
    drop(primary);
    Ok(())
}

/// When the server takes writes.
async fn promotion_of(replica: &RedisServer) -> Instant {
    loop {
        // Sentinel closes all connections to the server that it promotes
        let mut connection = replica.connection().await;
        let role: Result<Vec<redis::Value>, _> = redis::cmd("ROLE").query_async(&mut connection).await;
        let role = role.ok().and_then(|role| redis::from_redis_value::<String>(role.into_iter().next()?).ok());
        if role.as_deref() == Some("master") {
            return Instant::now();
        }
        sleep(LOOK_INTERVAL).await;
    }
}

async fn send_load(address: SocketAddr, answers: Answers) -> anyhow::Result<()> {
    let connections = connect_times(CONNECTIONS, || HttpConnection::open(address)).await?;
    let request: Arc<str> = post_request("/ojs/v1/jobs", &noop_job(QUEUE)).into();
    send_at_pace(connections, PER_SECOND * SECONDS, PER_SECOND, |mut connection, _| {
        let (request, answers) = (request.clone(), answers.clone());
        async move {
            let sent = Instant::now();
            let (status, body) = connection.send(&request).await?;
            let id = serde_json::from_str(&body).ok().and_then(|answer: Value| job_id(&answer["job"]).ok());
            let answered = Answered { sent, ended: Instant::now(), status, id };
            answers.lock().unwrap_or_else(PoisonError::into_inner).push(answered);
            Ok(connection)
        }
    })
    .await
}

/// Asks for every job that was acknowledged.
async fn count_lost(
    report: &mut BenchReport,
    name: &str,
    gateway: &ServiceProcess,
    answers: &[Answered],
) -> anyhow::Result<()> {
    let stored: Vec<&Answered> = answers.iter().filter(|answer| answer.is_stored()).collect();
    let ids: Option<Vec<String>> = stored.iter().map(|answer| answer.id.clone()).collect();
    let found = are_stored(gateway.address(), &ids.context("a stored job has an id")?).await?;
    let (mut acknowledged, mut lost) = ([0_u64; 2], [0_u64; 2]);
    for (answer, found) in stored.into_iter().zip(found) {
        let kind = usize::from(answer.status == 202);
        acknowledged[kind] += 1;
        lost[kind] += u64::from(!found);
    }
    for (words, kind) in [("201", 0), ("202, unconfirmed", 1)] {
        report.add_figure(format!("{name}jobs acknowledged with {words}"), count_as_f64(acknowledged[kind]), "");
        report.add_figure(format!("{name}of these lost"), count_as_f64(lost[kind]), "");
    }
    let confirms = !name.is_empty();
    report.check(!confirms || lost[0] == 0, || format!("{} confirmed jobs were lost", lost[0]));
    Ok(())
}
