//! Whether anything grows that must not while jobs of every kind run for a long time.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Context, ensure};
use clap::Args;
use jobs_check::{SoakOutcome, SoakSample, soak};

use crate::{numbers::count_as_f64, report::BenchReport};

/// The first part of the time warms up: caches fill, and what is kept for a while becomes as much as it will be.
const WARM_UP_PARTS: u64 = 3;
/// What a line through the samples may rise from the end of the warm-up to the end, beside a twentieth of the mean.
const MAX_RISE_BYTES: f64 = 4.0 * 1024.0 * 1024.0;
const MAX_RISE_COUNT: f64 = 20.0;
const MAX_RISE_KEYS: f64 = 200.0;
const MS_PER_HOUR: f64 = 3_600_000.0;

/// What is run.
#[derive(Debug, Clone, Args)]
pub(crate) struct SoakArgs {
    /// For how long.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    minutes: u32,
    /// Requests per second.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rate: u32,
    /// Where the requests come from; random if it is not said.
    #[arg(long)]
    seed: Option<u64>,
}

pub(crate) async fn run(args: SoakArgs, results: &Path) -> anyhow::Result<BenchReport> {
    let seed = args.seed.unwrap_or_else(rand::random);
    let mut report = BenchReport::new("soak");
    report.add_note(format!("--seed {seed} --minutes {} --rate {}", args.minutes, args.rate));
    let folder = results.join(format!("soak-{seed}"));
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| folder.display().to_string())?;
    }
    fs::create_dir_all(&folder)?;
    let SoakOutcome { samples, acknowledged, unfinished, repeated } =
        soak(seed, args.minutes, args.rate, &folder.canonicalize()?).await?;
    report.add_figure("plain jobs acknowledged", count_as_f64(acknowledged), "");
    report.add_figure("plain jobs that never ran to their end", count_as_f64(unfinished), "");
    report.add_figure("plain jobs that ran to their end twice", count_as_f64(repeated), "");
    report.check(unfinished == 0, || format!("{unfinished} acknowledged jobs never ran to their end"));
    report.check(repeated == 0, || format!("{repeated} jobs ran twice, and nothing broke"));
    let end = samples.last().context("samples")?.at_ms;
    let measured: Vec<&SoakSample> = samples.iter().filter(|sample| sample.at_ms >= end / WARM_UP_PARTS).collect();
    ensure!(measured.len() >= 3, "too short for a slope");
    let names: BTreeSet<&String> = measured.iter().flat_map(|sample| sample.values.keys()).collect();
    for name in names {
        add_slope(&mut report, name, &measured);
    }
    Ok(report)
}

fn add_slope(report: &mut BenchReport, name: &str, samples: &[&SoakSample]) {
    let points: Vec<(f64, f64)> = samples
        .iter()
        .filter_map(|sample| Some((count_as_f64(sample.at_ms), count_as_f64(*sample.values.get(name)?))))
        .collect();
    let (mean, slope) = line_through(&points);
    let length = points.last().map_or(0.0, |last| last.0) - points.first().map_or(0.0, |first| first.0);
    let (scale, unit, least) = if name.starts_with("resident") {
        (1.0 / 1024.0 / 1024.0, "MiB", MAX_RISE_BYTES)
    } else if name.starts_with("keys") {
        (1.0, "", MAX_RISE_KEYS)
    } else {
        (1.0, "", MAX_RISE_COUNT)
    };
    let (rise, limit) = (slope * length, least.max(mean / 20.0));
    report.add_figure(format!("{name}, mean"), mean * scale, unit);
    report.add_figure(format!("{name}, rise while measured"), rise * scale, unit);
    report.add_figure(format!("{name}, rise per hour"), slope * MS_PER_HOUR * scale, unit);
    report
        .check(rise <= limit, || format!("{name} rose by {:.1} {unit}, more than {:.1}", rise * scale, limit * scale));
}

/// The mean of the second members, and the slope of the line with the least squares.
fn line_through(points: &[(f64, f64)]) -> (f64, f64) {
    let count = count_as_f64(points.len() as u64).max(1.0);
    let mean_x = points.iter().map(|point| point.0).sum::<f64>() / count;
    let mean_y = points.iter().map(|point| point.1).sum::<f64>() / count;
    let spread: f64 = points.iter().map(|point| (point.0 - mean_x).powi(2)).sum();
    let product: f64 = points.iter().map(|point| (point.0 - mean_x) * (point.1 - mean_y)).sum();
    (mean_y, if spread > 0.0 { product / spread } else { 0.0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_found_through_points_beside_it() {
        let (mean, slope) = line_through(&[(0.0, 1.0), (1.0, 3.0), (2.0, 5.0), (3.0, 7.0)]);
        assert!((mean - 4.0).abs() < 1e-9 && (slope - 2.0).abs() < 1e-9, "{mean} {slope}");
        let (_, slope) = line_through(&[(0.0, 5.0), (1.0, 1.0), (2.0, 1.0), (3.0, 5.0)]);
        assert!(slope.abs() < 1e-9, "{slope}");
    }
}
