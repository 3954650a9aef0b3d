//! What was measured: tables to read, JSON to compare, plots, and what went wrong.

mod markdown;
mod svg;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context;
use common::time;
use serde_json::{Value, json};
use store::local_now;

pub(crate) use self::{markdown::publish, svg::BenchPlot};
use crate::machine::BenchMachine;

/// The figures of one scenario.
pub(crate) struct BenchReport {
    scenario: &'static str,
    figures: Vec<BenchFigure>,
    notes: Vec<String>,
    failures: Vec<String>,
    plots: Vec<BenchPlot>,
}

struct BenchFigure {
    what: String,
    value: f64,
    unit: &'static str,
    goal: &'static str,
}

impl BenchReport {
    pub(crate) fn new(scenario: &'static str) -> Self {
        println!("\n== {scenario}");
        Self { scenario, figures: Vec::new(), notes: Vec::new(), failures: Vec::new(), plots: Vec::new() }
    }

    /// Adds a figure and prints it.
    pub(crate) fn add_figure(&mut self, what: impl Into<String>, value: f64, unit: &'static str) {
        self.add_with_goal(what, value, unit, "");
    }

    /// The same beside the goal it is to be compared with.
    pub(crate) fn add_with_goal(
        &mut self,
        what: impl Into<String>,
        value: f64,
        unit: &'static str,
        goal: &'static str,
    ) {
        let (what, value) = (what.into(), (value * 1000.0).round() / 1000.0);
        let number = if value.abs() >= 1000.0 { format!("{value:.0}") } else { format!("{value}") };
        let verdict = match markdown::is_met(value, goal) {
            Some(false) => "MISSED",
            _ => "",
        };
        println!("{}", format!("{what:<62} {number:>12} {unit:<10} {goal:<8} {verdict}").trim_end());
        self.figures.push(BenchFigure { what, value, unit, goal });
    }

    /// The p50, p99 and maximum of some times.
    pub(crate) fn add_times(&mut self, what: &str, times: &[f64], goal_of_p99: &'static str) {
        let mut sorted = times.to_vec();
        sorted.sort_unstable_by(f64::total_cmp);
        self.add_figure(format!("{what}, p50"), percentile(&sorted, 50), "ms");
        self.add_with_goal(format!("{what}, p99"), percentile(&sorted, 99), "ms", goal_of_p99);
        self.add_figure(format!("{what}, max"), percentile(&sorted, 100), "ms");
    }

    /// Adds a plot.
    pub(crate) fn add_plot(&mut self, plot: BenchPlot) {
        self.plots.push(plot);
    }

    /// Adds something to know about the figures.
    pub(crate) fn add_note(&mut self, note: impl Into<String>) {
        let note = note.into();
        println!("   {note}");
        self.notes.push(note);
    }

    /// Adds a failure unless that holds.
    pub(crate) fn check(&mut self, holds: bool, failure: impl FnOnce() -> String) {
        if !holds {
            let failure = failure();
            println!("FAILED: {failure}");
            self.failures.push(failure);
        }
    }

    /// Whether nothing was lost.
    pub(crate) fn has_no_failures(&self) -> bool {
        self.failures.is_empty()
    }

    fn to_json(&self, date: &str) -> Value {
        let rows = self.figures.iter().map(|row| {
            let mut json = json!({ "what": row.what, "value": row.value, "unit": row.unit });
            if !row.goal.is_empty() {
                json["goal"] = row.goal.into();
            }
            json
        });
        json!({
            "scenario": self.scenario, "figures": rows.collect::<Vec<_>>(), "notes": self.notes, "failures": self.failures,
            "plots": self.plots.iter().map(|plot| plot_file(date, plot)).collect::<Vec<_>>(),
        })
    }
}

fn plot_file(date: &str, plot: &BenchPlot) -> String {
    format!("{date}-{}.svg", plot.name())
}

/// Writes `<folder>/<date>.json`, the same as tables, and the plots.
pub(crate) fn write(folder: &Path, machine: &BenchMachine, reports: &[BenchReport]) -> anyhow::Result<PathBuf> {
    let now = time::format(local_now());
    // 2026-11-22T10:00:00.123Z as 2026-11-22T100000: colons are not welcome in file names
    let date: String = now.chars().take_while(|c| *c != '.').filter(|c| *c != ':').collect();
    let path = folder.join(format!("{date}.json"));
    let scenarios: Vec<Value> = reports.iter().map(|report| report.to_json(&date)).collect();
    let json = json!({ "date": now, "machine": machine.to_json(), "scenarios": scenarios });
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let write =
        |path: &Path, text: String| fs::write(path, text).with_context(|| format!("cannot write {}", path.display()));
    write(&path, format!("{json:#}\n"))?;
    write(&path.with_extension("md"), markdown::to_markdown(&json))?;
    for plot in reports.iter().flat_map(|report| &report.plots) {
        write(&folder.join(plot_file(&date, plot)), plot.to_svg())?;
    }
    Ok(path)
}

/// The smallest value that that many percent of the sorted values do not exceed.
fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let index = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(index).copied().unwrap_or(f64::NAN)
}

/// The same of values in any order.
pub(crate) fn percentile_of(mut values: Vec<f64>, percent: usize) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    percentile(&values, percent)
}

/// The one in the middle.
pub(crate) fn median(values: Vec<f64>) -> f64 {
    percentile_of(values, 50)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_one_of_the_values() {
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        for (sorted, percent, expected) in [
            (&hundred[..], 50, 50.0),
            (&hundred, 99, 99.0),
            (&hundred, 100, 100.0),
            (&[7.0], 1, 7.0),
            (&[7.0], 99, 7.0),
        ] {
            assert!((percentile(sorted, percent) - expected).abs() < f64::EPSILON, "{percent} % of {sorted:?}");
        }
        assert!((median(vec![3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
    }
}
