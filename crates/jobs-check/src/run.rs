//! A run from its start to its verdict.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::ensure;
use reqwest::Method;
use serde_json::json;
use tokio::time::Instant;

use crate::{
    client::CheckClient,
    cluster::JobsCluster,
    ending, history, nemesis,
    plan::{JobRunner, JobsCheckOptions, JobsPlan},
    producers::JobProducers,
    verdict::{self, JobsVerdict},
};

/// The entry whose jobs are checked.
const CRON_NAME: &str = "every-second";

/// What came of a run.
#[derive(Debug)]
pub struct JobsCheckOutcome {
    /// What was planned.
    pub plan: JobsPlan,
    /// What is said about it.
    pub verdict: JobsVerdict,
    /// From the last request until every job had ended.
    pub drained_after: Duration,
    /// Where the histories are.
    pub folder: PathBuf,
    /// What happened, in its order.
    pub history: Vec<history::HistoryEntry>,
}

/// Judges the histories of an earlier run again.
///
/// # Errors
/// They cannot be read.
pub fn judge_again(options: &JobsCheckOptions, folder: &Path) -> anyhow::Result<JobsCheckOutcome> {
    let (plan, history) = (JobsPlan::of(options), history::read_histories(folder)?);
    let verdict = verdict::judge(&plan, &history);
    Ok(JobsCheckOutcome { plan, verdict, drained_after: Duration::ZERO, folder: folder.to_owned(), history })
}

/// Plans, runs and judges. The folder for the histories is empty.
///
/// # Errors
/// It cannot be run.
///
/// # Panics
/// A process does not start.
pub async fn check_jobs(options: &JobsCheckOptions, folder: &Path) -> anyhow::Result<JobsCheckOutcome> {
    let plan = JobsPlan::of(options);
    let mut cluster = JobsCluster::start(options.redis, folder).await?;
    let client = Arc::new(CheckClient::new(cluster.gateway_urls())?);
    let cron = json!({
        "name": CRON_NAME, "expression": "* * * * * *", "timezone": "UTC",
        "job_template": {
            "type": JobRunner::Pull.job_type(), "options": { "queue": JobRunner::Pull.queue() },
            "args": [0, { "run_ms": 5, "failures": 0, "fails_until_redriven": false }, ""],
        },
    });
    let (status, answer) = client.send_until_answered(Method::POST, "/ojs/v1/cron", Some(&cron)).await?;
    ensure!(status == 201, "the cron entry was answered with {status}: {answer}");
    let producers = Arc::new(JobProducers::new(client.clone(), folder, options.seed)?);
    let start = Instant::now();
    let looking = tokio::spawn(producers.clone().look_at_random());
    let sending = tokio::spawn({
        let (producers, plan) = (producers.clone(), plan.clone());
        async move { producers.send_all(&plan, start).await }
    });
    nemesis::strike_all(&plan, &mut cluster, folder, start).await?;
    sending.await??;
    client.send_until_answered(Method::DELETE, &format!("/ojs/v1/cron/{CRON_NAME}"), None).await?;
    let drained_after = ending::ask_for_every_job(&client, folder, &plan).await?;
    looking.abort();
    drop(cluster);
    let history = history::read_histories(folder)?;
    let verdict = verdict::judge(&plan, &history);
    Ok(JobsCheckOutcome { plan, verdict, drained_after, folder: folder.to_owned(), history })
}

#[cfg(test)]
mod tests {
    use testkit::RedisKind;

    use super::*;
    use crate::{
        plan::{CheckLink, CheckLoad, LinkDisturbance, PlannedFaultKind, PlannedJobKind},
        verdict::JobsViolation,
    };

    /// The check in short; `make chaos` is the same with every fault.
    #[tokio::test(flavor = "multi_thread")]
    async fn alone_no_job_is_lost_or_recorded_twice_while_processes_redis_and_connections_break() {
        assert_right(RedisKind::Server).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn alone_no_job_is_lost_or_recorded_twice_on_a_cluster_whose_primaries_are_replaced() {
        assert_right(RedisKind::Cluster).await;
    }

    async fn assert_right(redis: RedisKind) {
        let faults = vec![
            PlannedFaultKind::KillWorker,
            PlannedFaultKind::KillPuller,
            PlannedFaultKind::KillGateway,
            if redis == RedisKind::Server { PlannedFaultKind::LoseUnsynced } else { PlannedFaultKind::KillRedis },
            PlannedFaultKind::CutConnections,
            PlannedFaultKind::FlushScripts,
            PlannedFaultKind::Link(CheckLink::WorkerToRedis, LinkDisturbance::DropReply),
            PlannedFaultKind::Link(CheckLink::GatewayToRedis, LinkDisturbance::Reset),
        ];
        let options =
            JobsCheckOptions { redis, seed: 1, seconds: 1, rate: 10, faults, times: 1, load: CheckLoad::Mixed };
        let folder = tempfile::tempdir().expect("a folder");
        let outcome = check_jobs(&options, folder.path()).await.expect("it can be run");
        // How soon things happen is not judged here: other tests and the machine have a say in that
        let (slow, wrong): (Vec<_>, Vec<_>) =
            outcome.verdict.violations.iter().partition(|violation| violation.may_be_slowness());
        let told: Vec<String> = wrong.iter().map(|violation: &&JobsViolation| violation.to_string()).collect();
        assert!(told.is_empty(), "{}", told.join("\n"));
        assert!(
            outcome.verdict.acknowledged_requests >= PlannedJobKind::ALL.len() as u64 - 1,
            "{:#?}",
            outcome.verdict
        );
        println!("{} requests, {} runs, {slow:?}", outcome.verdict.acknowledged_requests, outcome.verdict.runs);
    }
}
