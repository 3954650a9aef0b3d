//! How late scheduled jobs start: jobs at random moments of ten seconds, one gateway, one queue-worker.
//!
//! A machine that others use too stops now and then, whatever runs on it. A bare timer beside the jobs shows when: the
//! quarters of a second in which it was late, and the one after each, are left out of a second set of figures.

use std::{collections::HashSet, time::Duration};

use store::local_now;

use crate::{
    galley::{BenchDurability, BenchGalley, job_time, noop_job_at, poll_until},
    numbers::count_as_f64,
    report::BenchReport,
};

pub(crate) const JOBS: u32 = 2000;

/// The first job is due so long after the start, when all are stored.
const LEAD_MS: i64 = 3000;
const SPREAD_MS: i64 = 10_000;
/// A quarter of a second in which a bare timer is later than this says nothing about Galley.
const DISTURBED_MS: f64 = 5.0;
const WINDOW_MS: i64 = 250;
/// Pause between two looks at the clock.
const CONTROL_INTERVAL_MS: i64 = 5;
const CONTROL_INTERVAL: Duration = Duration::from_millis(CONTROL_INTERVAL_MS.unsigned_abs());
const SCHEDULE_TIMEOUT: Duration = Duration::from_mins(1);

pub(crate) async fn run(durability: BenchDurability, jobs: u32) -> anyhow::Result<BenchReport> {
    let mut report = BenchReport::new("schedule");
    let galley = BenchGalley::start(durability).await;
    let _worker = galley.start_worker("planned", &[]).await;
    let first = local_now() + LEAD_MS;
    let due: Vec<i64> = (0..jobs).map(|_| first + rand::random_range(0..SPREAD_MS)).collect();
    let requests: Vec<String> = due.iter().map(|at| noop_job_at("planned", *at)).collect();
    let ids = galley.enqueue_all(&requests).await?;
    if local_now() >= first {
        report.add_note("some jobs were due before all were stored: they count as late");
    }
    let control = tokio::spawn(measure_timer_lateness());
    let is_over = || async { Ok(galley.stats("planned").await?.completed() >= u64::from(jobs)) };
    poll_until(SCHEDULE_TIMEOUT, Duration::from_millis(200), is_over).await?;
    let control = control.await?;
    let stats = galley.stats("planned").await?;
    report.check(stats.has_only_completed(jobs.into()), || {
        format!("not every job completed exactly once: {}", stats.to_line())
    });
    let shown = galley.fetch_jobs(&ids).await?;
    #[expect(clippy::cast_precision_loss, reason = "milliseconds since 1970 are far below 2^52")]
    let late: Vec<(i64, f64)> = shown
        .iter()
        .zip(&due)
        .filter_map(|(job, due)| job_time(job, "started_at").map(|started| (*due, started - *due as f64)))
        .collect();
    report.check(late.len() == shown.len(), || "a job was never started".to_owned());
    report.add_figure("jobs", jobs.into(), "");
    report.add_times("lateness", &lateness_in_windows(&late, |_| true), "<= 20");
    report.add_times("control: lateness of a bare timer meanwhile", &lateness_in_windows(&control, |_| true), "");
    let disturbed = disturbed_windows(&control);
    let in_peace = lateness_in_windows(&late, |window| !disturbed.contains(&window));
    report.add_figure("jobs that were due while the machine did not stop", count_as_f64(in_peace.len() as u64), "");
    if !in_peace.is_empty() {
        report.add_times("lateness of those", &in_peace, "<= 20");
    }
    Ok(report)
}

/// The windows in which the machine stopped, and the one after each: what piled up is worked off there.
fn disturbed_windows(control: &[(i64, f64)]) -> HashSet<i64> {
    let stopped = control.iter().filter(|(_, late)| *late > DISTURBED_MS);
    stopped.flat_map(|(at, _)| [at / WINDOW_MS, at / WINDOW_MS + 1]).collect()
}

/// How late things were that were due in those windows.
fn lateness_in_windows(late: &[(i64, f64)], counts: impl Fn(i64) -> bool) -> Vec<f64> {
    late.iter().filter(|(at, _)| counts(at / WINDOW_MS)).map(|(_, late)| *late).collect()
}

/// When and how late a timer of this process is, every few milliseconds while jobs are due: what the machine alone makes
/// late.
async fn measure_timer_lateness() -> Vec<(i64, f64)> {
    let mut late = Vec::new();
    let first = tokio::time::Instant::now() + CONTROL_INTERVAL;
    let times = u32::try_from((LEAD_MS + SPREAD_MS) / CONTROL_INTERVAL_MS).unwrap_or_default();
    for at in (0..times).map(|number| first + CONTROL_INTERVAL * number) {
        tokio::time::sleep_until(at).await;
        late.push((local_now(), at.elapsed().as_secs_f64() * 1000.0));
    }
    late
}
