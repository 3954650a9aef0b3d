//! Jobs whose end needs more than a result, beside plain ones on the same worker: unique jobs, jobs of a concurrency key,
//! jobs that expire, and jobs of workflows.

use anyhow::ensure;
use futures_util::{TryStreamExt, stream};
use serde_json::{Value, json};

use crate::{
    galley::{BenchDurability, BenchGalley},
    report::{BenchReport, median},
    scope::BenchScope,
};

const QUEUE: &str = "cared-for";
const JOBS: u32 = 40_000;
/// Jobs of a group, and steps of a chain.
const GROUP_SIZE: u32 = 100;
const CHAIN_STEPS: u32 = 10;
/// Keys of the keyed jobs, and how many of a key may run at once.
const KEYS: u32 = 1000;
const KEY_CONCURRENCY: u32 = 10;
/// Requests at a time.
const CONCURRENCY: usize = 8;

/// What the jobs need besides a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CareKind {
    Plain,
    Unique,
    Keyed,
    Expiring,
    Group,
    Chain,
}

impl CareKind {
    const ALL: [Self; 6] = [Self::Plain, Self::Unique, Self::Keyed, Self::Expiring, Self::Group, Self::Chain];

    fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain jobs",
            Self::Unique => "unique jobs",
            Self::Keyed => "jobs of 1,000 keys, 10 of each at once",
            Self::Expiring => "jobs with expires_at",
            Self::Group => "jobs of groups of 100",
            Self::Chain => "jobs of chains of 10",
        }
    }

    fn job(self, number: u32) -> Value {
        let filling = "x".repeat(192);
        let mut job = json!({
            "type": "test.noop", "args": [format!("{number:08}{filling}")], "options": { "queue": QUEUE },
        });
        match self {
            Self::Unique => job["unique"] = json!({ "keys": ["args"], "on_conflict": "reject" }),
            Self::Keyed => {
                job["rate_limit"] = json!({ "key": format!("key-{}", number % KEYS), "concurrency": KEY_CONCURRENCY });
            }
            Self::Expiring => {
                let at = store::local_now() + 3_600_000;
                job["options"]["expires_at"] = common::time::format(at).into();
            }
            Self::Plain | Self::Group | Self::Chain => {}
        }
        job
    }

    /// Stores that many jobs.
    async fn enqueue(self, galley: &BenchGalley, jobs: u32) -> anyhow::Result<()> {
        let (size, kind, member) = match self {
            Self::Group => (GROUP_SIZE, "group", "jobs"),
            Self::Chain => (CHAIN_STEPS, "chain", "steps"),
            _ => {
                let bodies: Vec<String> = (0..jobs).map(|number| self.job(number).to_string()).collect();
                return galley.enqueue_all(&bodies).await.map(drop);
            }
        };
        stream::iter((0..jobs / size).map(Ok))
            .try_for_each_concurrent(CONCURRENCY, async |workflow: u32| {
                let jobs: Vec<Value> = (0..size).map(|job| self.job(workflow * size + job)).collect();
                let body = json!({ "type": kind, member: jobs }).to_string();
                galley.connect().await?.post("/ojs/v1/workflows", &body).await.map(drop)
            })
            .await
    }
}

pub(crate) async fn run(durability: BenchDurability, scope: BenchScope) -> anyhow::Result<BenchReport> {
    let mut report = BenchReport::new("care");
    let jobs = scope.of(JOBS);
    let mut rates = vec![Vec::new(); CareKind::ALL.len()];
    for _ in 0..scope.rounds() {
        for (kind, rates) in CareKind::ALL.into_iter().zip(&mut rates) {
            let galley = BenchGalley::start(durability).await;
            kind.enqueue(&galley, jobs).await?;
            let worker = galley.start_worker(QUEUE, &[]).await;
            rates.push(galley.completed_per_second(QUEUE, jobs).await?);
            worker.terminate().await;
            let stats = galley.stats(QUEUE).await?;
            ensure!(stats.completed() == u64::from(jobs), "{}: {}", kind.name(), stats.to_line());
        }
    }
    report.add_note(format!("medians of {} rounds of {jobs} no-op jobs; one queue-worker, defaults", scope.rounds()));
    for (kind, rates) in CareKind::ALL.into_iter().zip(&rates) {
        report.add_figure(format!("{} processed", kind.name()), median(rates.clone()), "1/s");
    }
    for (kind, others) in CareKind::ALL.into_iter().zip(&rates).skip(1) {
        let ratios = others.iter().zip(&rates[0]).map(|(other, plain)| other / plain).collect();
        report.add_with_goal(format!("{} / plain", kind.name()), median(ratios), "", ">= 0.25");
    }
    Ok(report)
}
