//! Whether jobs are lost, recorded twice or run for no reason while everything breaks: jobs of every kind, and a fault of every
//! kind. What is wrong is a failure, with its detail, and the histories stay.

use std::{fs, path::Path};

use anyhow::{Context, ensure};
use clap::{Args, ValueEnum};
use jobs_check::{
    JobsCheckOutcome, check_jobs, draw_timeline, judge_again,
    plan::{CheckLoad, FaultGroup, JobsCheckOptions, PlannedFaultKind},
    verdict::{JobsVerdict, RecoveredThroughput},
};
use testkit::RedisKind;

use crate::{numbers::count_as_f64, report::BenchReport};

/// Violations that are told; there may be one for each job.
const MAX_TOLD: usize = 50;

/// What is run.
#[derive(Debug, Clone, Args)]
pub(crate) struct JobsCheckArgs {
    /// How long requests are sent; longer, if the faults take longer.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    seconds: u32,
    /// Requests per second, with one to seven jobs each.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rate: u32,
    /// Which faults strike, each of them at least once.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [NamedFaults::Processes, NamedFaults::Redis, NamedFaults::Links])]
    faults: Vec<NamedFaults>,
    /// Only these faults, such as kill-redis or worker-to-redis.delay; another value lists them.
    #[arg(long, value_delimiter = ',', value_parser = parse_fault, conflicts_with = "faults")]
    only: Vec<PlannedFaultKind>,
    /// How often each fault strikes, at least.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    times: u32,
    /// Plain jobs at even times, and pauses between faults: judges also how soon as many jobs end as before.
    #[arg(long)]
    steady: bool,
    /// What everything is stored in: server, sentinels (a primary and its replica) or cluster (three, and a replica of each). Faults
    /// of one server's clock, disk and links do not strike the others.
    #[arg(long, default_value_t = RedisKind::Server)]
    redis: RedisKind,
    /// Runs nothing: judges the histories that are there from a run with the same options.
    #[arg(long)]
    judge_again: bool,
    /// Where the plan comes from; random if it is not said. Several are run one after the other.
    #[arg(long, value_delimiter = ',')]
    seed: Vec<u64>,
    /// How many random seeds, one after the other.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
}

/// A group of faults, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum NamedFaults {
    /// Processes are killed, frozen and told to stop.
    Processes,
    /// Redis is killed, frozen and filled, forgets scripts and cuts connections, and its clock is set.
    Redis,
    /// What passes on connections is late, slow, cut up, dropped, reset or swallowed.
    Links,
    /// Nothing breaks.
    None,
}

impl NamedFaults {
    fn group(self) -> Option<FaultGroup> {
        match self {
            Self::Processes => Some(FaultGroup::Processes),
            Self::Redis => Some(FaultGroup::Redis),
            Self::Links => Some(FaultGroup::Links),
            Self::None => None,
        }
    }
}

fn parse_fault(text: &str) -> Result<PlannedFaultKind, String> {
    PlannedFaultKind::parse(text).ok_or_else(|| {
        let all: Vec<String> = PlannedFaultKind::all().into_iter().map(PlannedFaultKind::option).collect();
        format!("must be one of {}", all.join(", "))
    })
}

impl JobsCheckArgs {
    fn options(&self, seed: u64) -> JobsCheckOptions {
        let groups = self.faults.iter().filter_map(|named| named.group());
        let faults =
            if self.only.is_empty() { groups.flat_map(PlannedFaultKind::of).collect() } else { self.only.clone() };
        let load = if self.steady { CheckLoad::Steady } else { CheckLoad::Mixed };
        JobsCheckOptions {
            redis: self.redis,
            seed,
            seconds: self.seconds,
            rate: self.rate,
            faults,
            times: self.times,
            load,
        }
    }

    /// How to run it again.
    fn command_line(&self, seed: u64) -> String {
        let faults = if self.only.is_empty() {
            let names = self.faults.iter().filter_map(|named| Some(named.to_possible_value()?.get_name().to_owned()));
            format!("--faults {}", names.collect::<Vec<_>>().join(","))
        } else {
            let names: Vec<String> = self.only.iter().map(|kind| kind.option()).collect();
            format!("--only {}", names.join(","))
        };
        let Self { seconds, rate, times, steady, redis, .. } = self;
        let steady = if *steady { " --steady" } else { "" };
        format!("--redis {redis} --seed {seed} --seconds {seconds} --rate {rate} {faults} --times {times}{steady}")
    }
}

pub(crate) async fn run(args: JobsCheckArgs, results: &Path) -> anyhow::Result<Vec<BenchReport>> {
    let seeds = if args.seed.is_empty() { (0..args.runs).map(|_| rand::random()).collect() } else { args.seed.clone() };
    let mut reports = Vec::new();
    for seed in seeds {
        reports.push(run_seed(&args, seed, results).await?);
    }
    Ok(reports)
}

async fn run_seed(args: &JobsCheckArgs, seed: u64, results: &Path) -> anyhow::Result<BenchReport> {
    let options = args.options(seed);
    let mut report = BenchReport::new("jobs-check");
    report.add_note(args.command_line(seed));
    let folder = results.join(format!("jobs-check-{seed}"));
    if folder.exists() && !args.judge_again {
        fs::remove_dir_all(&folder).with_context(|| folder.display().to_string())?;
    }
    fs::create_dir_all(&folder)?;
    let folder = folder.canonicalize()?;
    let outcome =
        if args.judge_again { judge_again(&options, &folder)? } else { check_jobs(&options, &folder).await? };
    ensure!(!outcome.history.is_empty(), "nobody wrote anything down");
    fs::write(folder.join("timeline.svg"), draw_timeline(&outcome.plan, &outcome.history))?;
    fs::write(folder.join("verdict.json"), serde_json::to_vec_pretty(&outcome.verdict)?)?;
    report.add_note(format!("histories, verdict.json and timeline.svg: {}", folder.display()));
    add_outcome(&mut report, &outcome);
    Ok(report)
}

fn add_outcome(report: &mut BenchReport, outcome: &JobsCheckOutcome) {
    let JobsVerdict { states, duplicates, faults, violations, .. } = &outcome.verdict;
    let verdict = &outcome.verdict;
    for (what, count) in [
        ("requests acknowledged", verdict.acknowledged_requests),
        ("requests refused, as they must be", verdict.refused_requests),
        ("requests unanswered, and sent again", verdict.unanswered),
        ("jobs that had to end", verdict.jobs),
        ("runs of handlers", verdict.runs),
        ("runs of a cron entry that made a job", verdict.cron_runs),
        ("records that Redis had no memory for", verdict.dropped_records),
    ] {
        report.add_figure(what, count_as_f64(count), "");
    }
    for (state, count) in states {
        report.add_figure(format!("jobs in the end: {state}"), count_as_f64(*count), "");
    }
    for (cause, count) in duplicates {
        report.add_figure(format!("runs again after {cause}"), count_as_f64(*count), "");
    }
    for (fault, count) in faults {
        report.add_figure(fault.clone(), count_as_f64(*count), "");
    }
    for (fault, RecoveredThroughput { before, after_ms }) in &verdict.recovered {
        report.add_figure(format!("jobs that ended in 4 s before {fault}"), count_as_f64(*before), "");
        let back = after_ms.map_or(f64::NAN, count_as_f64);
        report.add_figure(format!("until throughput was back after {fault}"), back, "ms");
    }
    report.add_figure("from the last request until all jobs had ended", outcome.drained_after.as_secs_f64(), "s");
    report.add_figure("longest way back to work after a fault", count_as_f64(verdict.worst_recovery_ms), "ms");
    if !verdict.worst_recovery_after.is_empty() {
        report.add_note(format!("that was after: {}", verdict.worst_recovery_after));
    }
    report.add_figure("violations", count_as_f64(violations.len() as u64), "");
    for violation in violations.iter().take(MAX_TOLD) {
        report.check(false, || violation.to_string());
    }
}
