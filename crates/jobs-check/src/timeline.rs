//! A run as a picture: what was acknowledged and what ended in each half second, and the faults below.

use std::fmt::Write;

use crate::{
    history::{HistoryEntry, HistoryEvent},
    plan::JobsPlan,
};

const WIDTH: u64 = 1200;
const CHART_HEIGHT: u64 = 160;
const ROW_HEIGHT: u64 = 16;
const MARGIN: u64 = 20;
const BUCKET_MS: u64 = 500;
const LABEL_WIDTH: u64 = 260;

/// An SVG of it.
#[must_use]
pub fn draw_timeline(plan: &JobsPlan, history: &[HistoryEntry]) -> String {
    let (Some(first), Some(last)) = (history.first(), history.last()) else { return String::new() };
    let (start, length) = (first.at, (last.at - first.at).max(1));
    let x = |at: u64| LABEL_WIDTH + (at.saturating_sub(start)) * (WIDTH - LABEL_WIDTH - MARGIN) / length;
    let faults: Vec<_> = history
        .iter()
        .filter_map(|entry| match &entry.event {
            HistoryEvent::Struck { fault, target, from, to, .. } => Some((*fault, target, *from, *to)),
            _ => None,
        })
        .collect();
    let height = MARGIN * 3 + CHART_HEIGHT + ROW_HEIGHT * u64::try_from(faults.len()).unwrap_or(0);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" \
         font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n"
    );
    let acknowledged = count(history, start, length, |event| matches!(event, HistoryEvent::Acknowledged { .. }));
    let ended = count(history, start, length, |event| matches!(event, HistoryEvent::Finished { is_success: true, .. }));
    let unanswered = count(history, start, length, |event| matches!(event, HistoryEvent::Unanswered { .. }));
    let highest = [&acknowledged, &ended, &unanswered].into_iter().flatten().copied().max().unwrap_or(1).max(1);
    let bottom = MARGIN + CHART_HEIGHT;
    for (row, (name, color, counts)) in
        [("acknowledged", "#2166ac", acknowledged), ("ended", "#1b7837", ended), ("unanswered", "#b2182b", unanswered)]
            .into_iter()
            .enumerate()
    {
        let y = MARGIN + ROW_HEIGHT * (u64::try_from(row).unwrap_or(0) + 1);
        let _ = writeln!(svg, "<text x=\"{MARGIN}\" y=\"{y}\" fill=\"{color}\">{name}, per half second</text>");
        let points: Vec<String> = (0_u64..)
            .zip(counts)
            .map(|(bucket, count)| {
                format!("{},{}", x(start + bucket * BUCKET_MS), bottom - count * CHART_HEIGHT / highest)
            })
            .collect();
        let points = points.join(" ");
        let _ = writeln!(svg, "<polyline fill=\"none\" stroke=\"{color}\" stroke-width=\"1.5\" points=\"{points}\"/>");
    }
    let _ = writeln!(svg, "<text x=\"{MARGIN}\" y=\"{bottom}\">at most {highest}</text>");
    for (row, (fault, target, from, to)) in (0_u64..).zip(faults) {
        let name = plan.faults.get(fault).map_or(String::new(), |fault| fault.kind.name());
        let (top, left) = (bottom + MARGIN + row * ROW_HEIGHT, x(from));
        let width = (x(to) - left).max(2);
        let text = top + ROW_HEIGHT - 5;
        let _ = writeln!(svg, "<text x=\"{MARGIN}\" y=\"{text}\">{name} ({target})</text>");
        let bar = ROW_HEIGHT - 4;
        let _ = writeln!(
            svg,
            "<rect x=\"{left}\" y=\"{top}\" width=\"{width}\" height=\"{bar}\" fill=\"#b2182b\" fill-opacity=\"0.6\"/>"
        );
    }
    svg.push_str("</svg>\n");
    svg
}

fn count(history: &[HistoryEntry], start: u64, length: u64, is_counted: impl Fn(&HistoryEvent) -> bool) -> Vec<u64> {
    let buckets = usize::try_from(length / BUCKET_MS).unwrap_or(0) + 1;
    let mut counts = vec![0; buckets];
    for entry in history.iter().filter(|entry| is_counted(&entry.event)) {
        let bucket = usize::try_from((entry.at - start) / BUCKET_MS).unwrap_or(0);
        counts[bucket.min(buckets - 1)] += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{CheckLoad, PlannedFault, PlannedFaultKind};

    #[test]
    fn what_struck_is_in_the_picture_beside_what_was_acknowledged() {
        let kind = PlannedFaultKind::KillRedis;
        let faults = vec![PlannedFault { at_ms: 0, duration_ms: 1, kind, target: 0 }];
        let plan = JobsPlan { requests: Vec::new(), faults, length_ms: 0, load: CheckLoad::Mixed };
        let entry = |at, event| HistoryEntry { at, by: String::new(), event };
        let acknowledged = HistoryEvent::Acknowledged { request: 1, ids: Vec::new(), is_created: true };
        let struck = HistoryEvent::Struck { fault: 0, target: "redis".to_owned(), from: 5, to: 900, hits: 1 };
        let svg = draw_timeline(&plan, &[entry(1, acknowledged), entry(1000, struck)]);
        assert!(svg.contains("kill -9 of Redis (redis)") && svg.contains("at most 1") && svg.ends_with("</svg>\n"));
        assert_eq!(draw_timeline(&plan, &[]), "");
    }
}
