//! `galley stats`: what there is now, and what happened lately as lines of bars.

use clap::Args;
use serde_json::Value;

use crate::{
    failure::CliResult,
    gateway_client::{GatewayCall, PathWithQuery},
    session::{Session, items},
    table::{Details, TextTable},
    terminal::Terminal,
};

/// Bars of a line where nothing says how wide the terminal is.
const DEFAULT_BARS: usize = 60;
/// Columns that a row has beside its bars.
const OTHER_COLUMNS: usize = 46;
const MIN_BARS: usize = 10;
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// The series, their names for people, and whether their points are sums.
const SERIES: [(&str, &str, bool); 9] = [
    ("enqueued", "enqueued", true),
    ("processed", "processed", true),
    ("failed", "failed attempts", true),
    ("discarded", "discarded", true),
    ("cancelled", "cancelled", true),
    ("latency_p50_ms", "run, half, ms", false),
    ("latency_p99_ms", "run, 99 %, ms", false),
    ("wait_p50_ms", "wait, half, ms", false),
    ("wait_p99_ms", "wait, 99 %, ms", false),
];

#[derive(Debug, Args)]
pub(crate) struct StatsArgs {
    /// Only this queue.
    #[arg(long)]
    queue: Option<String>,
    /// How much time a bar covers: 1m, 5m, 1h or 1d.
    #[arg(long, default_value = "1m")]
    period: String,
    /// From when on: RFC 3339, or -PT6H.
    #[arg(long, default_value = "-PT1H", allow_hyphen_values = true)]
    since: String,
    /// Until when.
    #[arg(long, allow_hyphen_values = true)]
    until: Option<String>,
}

impl StatsArgs {
    pub(crate) async fn run(self, session: &Session) -> CliResult {
        if self.queue.is_none() {
            session.show(GatewayCall::get("/ojs/v1/admin/stats"), show_now).await?;
        }
        let path = PathWithQuery::new("/ojs/v1/admin/stats/history").with("queue", self.queue);
        let path = path.with("period", Some(self.period)).with("since", Some(self.since)).with("until", self.until);
        session.show(path.into_call(), show_history).await.map(drop)
    }
}

fn show_now(answer: &Value, terminal: Terminal) -> CliResult {
    if terminal.quiet {
        return Ok(());
    }
    let mut details = Details::default();
    details.members(answer, &["queues", "workers"]);
    details.members(&answer["jobs"], &["available", "active", "scheduled", "retryable", "pending"]);
    details.members(&answer["jobs"], &["completed", "discarded", "cancelled"]);
    details.members(&answer["throughput"], &["enqueued_per_minute", "processed_per_minute", "failed_per_minute"]);
    details.print(terminal)
}

fn show_history(answer: &Value, terminal: Terminal) -> CliResult {
    if answer["covered"] == false {
        terminal.note("this queue has no history of its own: statistics.max_queues others have one");
    }
    let bars = terminal.width.map_or(DEFAULT_BARS, |width| width.saturating_sub(OTHER_COLUMNS).max(MIN_BARS));
    let points = items(answer, "data");
    let mut table = TextTable::new(&["what", "in all", "most", "newest", "course"]);
    for (name, title, is_sum) in SERIES {
        let values: Vec<u64> = points.iter().map(|point| point[name].as_u64().unwrap_or(0)).collect();
        let total = if is_sum { values.iter().sum::<u64>().to_string() } else { "-".to_owned() };
        let most = values.iter().max().copied().unwrap_or(0).to_string();
        let newest = values.last().copied().unwrap_or(0).to_string();
        table.row([title.to_owned(), total, most, newest, sparkline(&merged(&values, bars, is_sum))]);
    }
    table.print(terminal)?;
    if let (Some(since), Some(until), Some(period)) =
        (answer["since"].as_str(), answer["until"].as_str(), answer["period"].as_str())
    {
        terminal.note(&format!("from {since} to {until} by {period}"));
    }
    Ok(())
}

/// At most that many values for all of them: neighbours are added, or the higher one counts.
fn merged(values: &[u64], most: usize, is_sum: bool) -> Vec<u64> {
    let size = values.len().div_ceil(most.max(1)).max(1);
    // The newest bar covers as much as the others
    let first = values.len() % size;
    let (head, rest) = values.split_at(first);
    let merge = |some: &[u64]| if is_sum { some.iter().sum() } else { some.iter().max().copied().unwrap_or(0) };
    (!head.is_empty()).then(|| merge(head)).into_iter().chain(rest.chunks(size).map(merge)).collect()
}

/// Nothing is the lowest bar, and the highest value the highest.
fn sparkline(values: &[u64]) -> String {
    let highest = u128::from(values.iter().max().copied().unwrap_or(0).max(1));
    let last = BARS.len() as u128 - 1;
    let bar = |value: &u64| {
        let height = (u128::from(*value) * last).div_ceil(highest);
        BARS[usize::try_from(height).unwrap_or(0).min(BARS.len() - 1)]
    };
    values.iter().map(bar).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_show_the_highest_value_and_that_there_was_something() {
        assert_eq!(sparkline(&[0, 1, 50, 100]), "▁▂▅█");
        assert_eq!(sparkline(&[0, 0]), "▁▁");
        assert_eq!(sparkline(&[u64::MAX]), "█");
        assert_eq!(sparkline(&[]), "");
    }

    #[test]
    fn more_values_than_columns_are_merged_and_none_is_lost() {
        assert_eq!(merged(&[1, 2, 3, 4, 5], 2, true), [3, 12]);
        assert_eq!(merged(&[1, 2, 3, 4, 5], 3, false), [1, 3, 5]);
        assert_eq!(merged(&[1, 2], 10, true), [1, 2]);
        assert_eq!(merged(&[], 10, true), Vec::<u64>::new());
        for count in 0..200 {
            let values = vec![1; count];
            let bars = merged(&values, 60, true);
            assert!(bars.len() <= 60 && bars.iter().sum::<u64>() == count as u64, "{count}");
        }
    }
}
