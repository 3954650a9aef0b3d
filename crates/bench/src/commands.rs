//! Jobs done by a program per second, beside a bare client that starts the same program as often.

use std::{process::Stdio, time::Instant};

use anyhow::{Context, ensure};
use futures_util::{TryStreamExt, stream};
use tokio::process::Command;

use crate::{
    galley::{BenchDurability, BenchGalley, noop_job},
    report::{BenchReport, median},
};

const JOBS: u32 = 1000;
/// Programs at a time.
const CONCURRENCY: usize = 4;
/// It does nothing, so starting and ending it is all there is.
const PROGRAM: &str = "true";

pub(crate) async fn run(durability: BenchDurability, rounds: u32) -> anyhow::Result<BenchReport> {
    let mut report = BenchReport::new("commands");
    let (mut by_galley, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        bare.push(started_per_second().await?);
        let galley = BenchGalley::start(durability).await;
        by_galley.push(done_per_second(&galley).await?);
        let stats = galley.stats("programs").await?;
        report.check(stats.has_only_completed(JOBS.into()), || {
            format!("not every job completed exactly once: {}", stats.to_line())
        });
    }
    let ratios = by_galley.iter().zip(&bare).map(|(galley, bare)| galley / bare).collect();
    report.add_note(format!("medians of {rounds} rounds; the program is {PROGRAM}, {CONCURRENCY} at a time"));
    report.add_figure("jobs done by a program", median(by_galley), "1/s");
    report.add_figure("bare client: programs started and waited for", median(bare), "1/s");
    report.add_figure("by jobs / bare", median(ratios), "");
    Ok(report)
}

async fn done_per_second(galley: &BenchGalley) -> anyhow::Result<f64> {
    let folder = tempfile::tempdir()?;
    let rules = folder.path().join("rules.toml");
    std::fs::write(&rules, format!("[[rule]]\ntype = \"test.noop\"\ncommand = {{ program = \"{PROGRAM}\" }}\n"))?;
    let jobs: Vec<String> = (0..JOBS).map(|_| noop_job("programs")).collect();
    galley.enqueue_all(&jobs).await?;
    let rules = rules.to_str().context("a path that is text")?;
    let at_once = CONCURRENCY.to_string();
    let variables = [("GALLEY__QUEUE_WORKER__RULES", rules), ("GALLEY__QUEUE_WORKER__CONCURRENCY", at_once.as_str())];
    let worker = galley.start_worker("programs", &variables).await;
    let rate = galley.completed_per_second("programs", JOBS).await?;
    worker.terminate().await;
    Ok(rate)
}

/// With pipes, as a job has them.
async fn started_per_second() -> anyhow::Result<f64> {
    let began = Instant::now();
    stream::iter((0..JOBS).map(Ok))
        .try_for_each_concurrent(CONCURRENCY, async |_: u32| {
            let mut command = Command::new(PROGRAM);
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let output = command.spawn()?.wait_with_output().await?;
            ensure!(output.status.success(), "{PROGRAM} ended with {}", output.status);
            Ok(())
        })
        .await?;
    Ok(f64::from(JOBS) / began.elapsed().as_secs_f64())
}
