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

/// Plans, runs and judges. The folder for the histories is empty.
///
/// # Errors
/// It cannot be run.
///
/// # Panics
/// A process does not start.
pub async fn check_jobs(options: &JobsCheckOptions, folder: &Path) -> anyhow::Result<JobsCheckOutcome> {
    let plan = JobsPlan::of(options);
    let mut cluster = JobsCluster::start(folder).await?;
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
