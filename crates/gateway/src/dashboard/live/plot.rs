//! Lines as SVG. The numbers beside a plot say the same to those who cannot see it, so a plot is hidden from screen readers.

use std::fmt::Write;

use common::time::{self, Millis};

use super::known::to_f64;

const WIDTH: f64 = 600.0;
const HEIGHT: f64 = 120.0;
/// Room for the labels of the scale.
const TOP: f64 = 14.0;

/// Numbers in a row, as small as a word.
pub(in crate::dashboard) fn sparkline(numbers: &[u64]) -> String {
    let max = numbers.iter().copied().max().unwrap_or(0).max(1);
    let step = 100.0 / to_f64(numbers.len().saturating_sub(1).max(1) as u64);
    let mut path = String::new();
    for (index, number) in numbers.iter().enumerate() {
        let (x, y) = (step * to_f64(index as u64), 22.0 - 20.0 * to_f64(*number) / to_f64(max));
        let _ = write!(path, "{}{x:.1} {y:.1}", if index == 0 { "M" } else { "L" });
    }
    if numbers.len() <= 1 {
        path.replace_range(.., "M0 22H100");
    }
    format!(
        r#"<svg class="spark" viewBox="0 0 100 24" width="100" height="24" preserveAspectRatio="none" aria-hidden="true"><path class="area" d="{path}V24H0Z"/><path d="{path}"/></svg>"#
    )
}

/// Lines over time, each with its class. All share one scale, whose unit is `unit`, and the time of `domain` or else that of
/// their points; the first has its area filled.
pub(in crate::dashboard) fn lines(
    unit: &str,
    domain: Option<(Millis, Millis)>,
    series: &[(&str, Vec<(Millis, f64)>)],
) -> String {
    let points = || series.iter().flat_map(|(_, points)| points);
    let max = points().map(|(_, value)| *value).fold(0.0_f64, f64::max);
    let scale = round_up(max);
    let times = || points().map(|(at, _)| *at);
    let (first, last) = domain.unwrap_or_else(|| (times().min().unwrap_or(0), times().max().unwrap_or(0)));
    let span = to_f64((last - first).max(1).unsigned_abs());
    let mut svg = format!(
        r#"<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" aria-hidden="true"><path class="plot-grid" d="M0 {TOP}H{WIDTH}M0 {}H{WIDTH}M0 {}H{WIDTH}"/>"#,
        f64::midpoint(HEIGHT, TOP),
        HEIGHT - 1.0,
    );
    for (index, (class, points)) in series.iter().enumerate() {
        // What is zero all the time would only hide the line below it
        if index > 0 && points.iter().all(|(_, value)| *value <= 0.0) {
            continue;
        }
        let mut path = String::new();
        let mut ends = (0.0, 0.0);
        for (at, value) in points {
            let x = WIDTH * to_f64((at - first).unsigned_abs()) / span;
            let y = HEIGHT - 1.0 - (HEIGHT - TOP - 1.0) * value / scale;
            let _ = write!(path, "{}{x:.1} {y:.1}", if path.is_empty() { "M" } else { "L" });
            ends = (if path.contains('L') { ends.0 } else { x }, x);
        }
        if path.is_empty() {
            continue;
        }
        if index == 0 {
            let _ = write!(svg, r#"<path class="area" d="{path}V{HEIGHT}H{:.1}Z"/>"#, ends.0);
        }
        // One point is a dot
        let (dot, end) = if path.contains('L') { ("", "") } else { (" dot", "h0.1") };
        let _ = write!(svg, r#"<path class="{class}{dot}" d="{path}{end}"/>"#);
    }
    svg.push_str("</svg>");
    let _ = write!(svg, r#"<span class="plot-scale">{}{unit}</span>"#, scale_text(scale));
    if last > first {
        // A day and more would begin and end with the same time
        let is_long = last - first > 80_000_000;
        let label = |at| if is_long { time::format(at)[5..16].replace('T', " ") } else { clock(at) };
        let _ = write!(
            svg,
            r#"<span class="plot-times"><span>{}</span><span>{} UTC</span></span>"#,
            label(first),
            label(last)
        );
    }
    svg
}

/// Hours and minutes of a time.
fn clock(at: Millis) -> String {
    time::format(at).get(11..16).unwrap_or_default().to_owned()
}

/// The next of 1, 2, 5, 10, 20, ... above.
fn round_up(value: f64) -> f64 {
    let mut scale = 1.0;
    for factor in [2.0, 2.5, 2.0].into_iter().cycle() {
        if scale >= value || scale > 1e15 {
            break;
        }
        scale *= factor;
    }
    scale
}

fn scale_text(scale: f64) -> String {
    match scale {
        scale if scale >= 1e6 => format!("{} M", scale / 1e6),
        scale if scale >= 1e4 => format!("{} k", scale / 1e3),
        scale => format!("{scale}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plot_has_a_line_for_each_series_that_is_not_zero_and_survives_none_and_one_point() {
        assert_eq!(lines("", None, &[]).matches("<path").count(), 1, "the grid alone");
        let svg =
            lines(" ms", None, &[("a", vec![(0, 1.0), (60_000, 3.0)]), ("b", vec![(0, 2.0)]), ("c", vec![(0, 0.0)])]);
        assert!(svg.contains(r#"<path class="a" d="M0.0 "#) && svg.contains(r#"class="b dot""#), "{svg}");
        assert!(svg.contains(r#"<span class="plot-scale">5 ms</span>"#) && !svg.contains("NaN"), "{svg}");
        assert!(svg.contains("<span>00:00</span><span>00:01 UTC</span>") && !svg.contains(r#"class="c""#), "{svg}");
        assert_eq!([0.5, 1.0, 3.0, 5.0, 11.0, 40.0].map(round_up).map(scale_text), ["1", "1", "5", "5", "20", "50"]);
        assert!(sparkline(&[]).contains("M0 22H100") && sparkline(&[0, 4]).contains("M0.0 22.0L100.0 2.0"));
    }
}
