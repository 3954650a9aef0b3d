//! How late scheduled jobs start: jobs at random moments of ten seconds, one gateway, one queue-worker.

use std::time::Duration;

use common::redis::jobs::local_now;

use crate::{
    galley::{Durability, Galley, noop_at, time_of, until},
    report::Report,
};

pub(crate) const JOBS: u32 = 2000;

/// The first job is due so long after the start, when all are stored.
const LEAD_MS: i64 = 3000;
const SPREAD_MS: i64 = 10_000;
/// Pause between two looks at the clock.
const CONTROL_MS: i64 = 5;
const CONTROL: Duration = Duration::from_millis(CONTROL_MS.unsigned_abs());
const LIMIT: Duration = Duration::from_mins(1);

pub(crate) async fn run(durability: Durability, jobs: u32) -> anyhow::Result<Report> {
    let mut report = Report::new("schedule");
    let galley = Galley::start(durability).await;
    let _worker = galley.worker("planned", &[]).await;
    let first = local_now() + LEAD_MS;
    let due: Vec<i64> = (0..jobs).map(|_| first + rand::random_range(0..SPREAD_MS)).collect();
    let requests: Vec<String> = due.iter().map(|at| noop_at("planned", *at)).collect();
    let ids = galley.enqueue_all(&requests).await?;
    if local_now() >= first {
        report.note("some jobs were due before all were stored: they count as late");
    }
    let control = tokio::spawn(late_timers());
    let is_over = || async { Ok(galley.stats("planned").await?.completed() >= u64::from(jobs)) };
    until(LIMIT, Duration::from_millis(200), is_over).await?;
    let control = control.await?;
    let stats = galley.stats("planned").await?;
    report.check(stats.is_exactly(jobs.into()), || format!("not every job completed exactly once: {}", stats.line()));
    let shown = galley.look_up(&ids).await?;
    #[expect(clippy::cast_precision_loss, reason = "milliseconds since 1970 are far below 2^52")]
    let lateness: Vec<f64> = shown
        .iter()
        .zip(&due)
        .filter_map(|(job, due)| time_of(job, "started_at").map(|started| started - *due as f64))
        .collect();
    report.check(lateness.len() == shown.len(), || "a job was never started".to_owned());
    report.add("jobs", jobs.into(), "");
    report.add_times("lateness", &lateness, "<= 20");
    report.add_times("control: lateness of a bare timer meanwhile", &control, "");
    Ok(report)
}

/// How late a timer of this process is, every few milliseconds while jobs are due: what the machine alone makes late.
async fn late_timers() -> Vec<f64> {
    let mut late = Vec::new();
    let first = tokio::time::Instant::now() + CONTROL;
    let times = u32::try_from((LEAD_MS + SPREAD_MS) / CONTROL_MS).unwrap_or_default();
    for at in (0..times).map(|number| first + CONTROL * number) {
        tokio::time::sleep_until(at).await;
        late.push(at.elapsed().as_secs_f64() * 1000.0);
    }
    late
}
