//! Keeps the work of a job from growing unnoticed: instructions of the paths that every job takes, as callgrind counts them,
//! and what Redis does and stores for a job. No times, so nothing depends on how busy the machine is.
//!
//! `guard` compares with `bench/guard.json` and fails when a figure has grown by more than a tenth. `UPDATE=1` writes the
//! file again.

mod measures;
mod stages;

use std::{path::Path, process::Command};

use anyhow::{Context, bail, ensure};
use testkit::RedisServer;

use self::{
    measures::GuardMeasures,
    stages::{GuardStage, Stages},
};

/// Jobs of which the difference is counted: what a process does once cancels out.
const FEW: u32 = 300;
const MANY: u32 = 900;
/// Jobs of which the work of Redis is counted: what its clients do now and then does not count.
const REDIS_JOBS: u32 = 10_000;
const EXPECTED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../bench/guard.json");

fn main() -> anyhow::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => runtime.block_on(check()),
        [stage, jobs, url] => runtime.block_on(run_stage(stage, jobs.parse()?, url)),
        _ => bail!("guard takes no arguments"),
    }
}

/// What runs below callgrind.
async fn run_stage(stage: &str, jobs: u32, url: &str) -> anyhow::Result<()> {
    let stage = GuardStage::ALL.into_iter().find(|known| known.name() == stage).context("a stage")?;
    let mut stages = Stages::open(url).await?;
    for before in GuardStage::ALL.into_iter().filter(|other| stage.needs(*other)) {
        stages.run(before, jobs).await?;
    }
    stages.run(stage, jobs).await
}

async fn check() -> anyhow::Result<()> {
    let mut measured = GuardMeasures::default();
    for stage in GuardStage::ALL {
        let mut each = count_instructions_of_jobs(stage)?;
        if let Some(before) = stage.before() {
            each -= count_instructions_of_jobs(before)?;
        }
        measured.set(format!("instructions: {}", stage.name()), each);
    }
    stages::measure_redis(&mut measured, REDIS_JOBS).await?;
    measured.compare(Path::new(EXPECTED))
}

/// Instructions of this program for one job of a stage and of those that it needs.
fn count_instructions_of_jobs(stage: GuardStage) -> anyhow::Result<f64> {
    Ok((count_instructions(stage, MANY)? - count_instructions(stage, FEW)?) / f64::from(MANY - FEW))
}

fn count_instructions(stage: GuardStage, jobs: u32) -> anyhow::Result<f64> {
    let server = RedisServer::start();
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]).arg(std::env::current_exe()?);
    command.args([stage.name(), &jobs.to_string(), &server.url()]);
    let output = command.output().context("valgrind, of Debian's package of that name")?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {text}", stage.name());
    let count = text.lines().find_map(|line| line.split_once("Collected : ")?.1.trim().parse().ok());
    count.with_context(|| format!("callgrind says how many instructions it saw: {text}"))
}
