//! A long run in which nothing breaks: what must not grow is looked at again and again.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use reqwest::Method;
use testkit::{
    RedisKind,
    redis::{self, aio::MultiplexedConnection},
};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use crate::{
    client::CheckClient,
    cluster::JobsCluster,
    history::{HistoryEntry, HistoryEvent, read_histories},
    plan::{CheckLoad, JobRunner, JobsCheckOptions, JobsPlan, PlannedJobKind},
    producers::JobProducers,
};

/// What ended is forgotten soon, so that its number stands still after a few minutes.
const SHORT_TTLS: [(&str, &str); 3] = [
    ("GALLEY__JOBS__RESULT_TTL_MS", "60000"),
    ("GALLEY__JOBS__DISCARDED_MAX", "100"),
    ("GALLEY__GATEWAY__IDEMPOTENCY_TTL_MS", "60000"),
];
const SAMPLE_INTERVAL: Duration = Duration::from_secs(5);
/// After the last request, until every job has run.
const MAX_DRAIN: Duration = Duration::from_mins(1);

/// What was seen at one moment, by its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SoakSample {
    /// Milliseconds since the start.
    pub at_ms: u64,
    /// Bytes, descriptors, keys or jobs.
    pub values: BTreeMap<String, u64>,
}

/// What came of it.
#[derive(Debug)]
pub struct SoakOutcome {
    /// In the order of their times.
    pub samples: Vec<SoakSample>,
    /// Plain jobs that were acknowledged.
    pub acknowledged: u64,
    /// Those of them that never ran to their end.
    pub unfinished: u64,
    /// Plain jobs that ran to their end twice.
    pub repeated: u64,
}

/// Sends jobs of every kind for some minutes, but no workflows: results of their jobs stay for an hour at least.
///
/// # Errors
/// It cannot be run.
///
/// # Panics
/// A process does not start.
pub async fn soak(seed: u64, minutes: u32, rate: u32, folder: &Path) -> anyhow::Result<SoakOutcome> {
    let (redis, seconds, load) = (RedisKind::Server, minutes * 60, CheckLoad::Mixed);
    let options = JobsCheckOptions { redis, seed, seconds, rate, faults: Vec::new(), times: 1, load };
    let mut plan = JobsPlan::of(&options);
    plan.requests.retain(|request| !request.kind.is_workflow());
    let cluster = JobsCluster::start_with(redis, folder, &SHORT_TTLS).await?;
    let client = Arc::new(CheckClient::new(cluster.gateway_urls())?);
    let producers = Arc::new(JobProducers::new(client.clone(), folder, seed)?);
    let start = Instant::now();
    let sending = tokio::spawn({
        let plan = plan.clone();
        async move { producers.send_all(&plan, start).await }
    });
    let mut redis = cluster.redis.connections().await.swap_remove(0);
    let (mut samples, mut ticks) = (Vec::new(), interval(SAMPLE_INTERVAL));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !sending.is_finished() {
        ticks.tick().await;
        let at_ms = u64::try_from(start.elapsed().as_millis())?;
        samples.push(SoakSample { at_ms, values: sample(&cluster, &client, &mut redis).await? });
    }
    sending.await??;
    let deadline = Instant::now() + MAX_DRAIN;
    loop {
        let outcome = count(&plan, &read_histories(folder)?, &samples);
        if outcome.unfinished == 0 || Instant::now() > deadline {
            return Ok(outcome);
        }
        sleep(SAMPLE_INTERVAL).await;
    }
}

/// Whether what was acknowledged ran. Only of plain jobs it is known without a look at the plan of each.
fn count(plan: &JobsPlan, history: &[HistoryEntry], samples: &[SoakSample]) -> SoakOutcome {
    let plain = plan.requests.iter().filter(|request| request.kind == PlannedJobKind::Plain);
    let plain: BTreeSet<u32> = plain.map(|request| request.number).collect();
    let (mut acknowledged, mut runs, mut finished) = (BTreeSet::new(), BTreeMap::new(), BTreeMap::<&str, u64>::new());
    for entry in history {
        match &entry.event {
            HistoryEvent::Acknowledged { request, ids, .. } if plain.contains(request) => {
                acknowledged.extend(ids.iter().map(String::as_str));
            }
            HistoryEvent::Started { run, id, .. } => {
                runs.insert(run.as_str(), id.as_str());
            }
            HistoryEvent::Finished { run, is_success: true } => {
                if let Some(id) = runs.get(run.as_str()) {
                    *finished.entry(id).or_default() += 1;
                }
            }
            _ => {}
        }
    }
    let times = |id: &&str| finished.get(id).copied().unwrap_or(0);
    SoakOutcome {
        samples: samples.to_vec(),
        acknowledged: acknowledged.len() as u64,
        unfinished: acknowledged.iter().filter(|id| times(id) == 0).count() as u64,
        repeated: acknowledged.iter().filter(|id| times(id) > 1).count() as u64,
    }
}

async fn sample(
    cluster: &JobsCluster,
    client: &CheckClient,
    redis: &mut MultiplexedConnection,
) -> anyhow::Result<BTreeMap<String, u64>> {
    let mut values = BTreeMap::new();
    for (name, process) in cluster.process_ids() {
        let status = fs::read_to_string(format!("/proc/{process}/status")).with_context(|| name.to_owned())?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("its memory")?;
        let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
        values.insert(format!("resident bytes of {name}"), kib * 1024);
        let open = fs::read_dir(format!("/proc/{process}/fd")).context("its descriptors")?.count();
        values.insert(format!("descriptors of {name}"), open as u64);
    }
    values.insert("keys of Redis".to_owned(), redis::cmd("DBSIZE").query_async(redis).await?);
    let mut waiting = 0;
    for queue in JobRunner::ALL.map(JobRunner::queue) {
        let (_, body) = client.send_until_answered(Method::GET, &format!("/ojs/v1/queues/{queue}/stats"), None).await?;
        waiting += body["queue"]["available"].as_u64().unwrap_or(0);
    }
    values.insert("jobs that wait in streams".to_owned(), waiting);
    Ok(values)
}
