//! Lines as SVG. The numbers beside a plot say the same to those who cannot see it, so a plot is hidden from screen readers.

use std::fmt::Write;

use common::time::Millis;

use super::known::{QueueLook, to_f64};

const WIDTH: f64 = 600.0;
const HEIGHT: f64 = 120.0;
/// Room for the labels of the scale.
const TOP: f64 = 14.0;

/// The waiting jobs of a queue at the last looks.
pub(in crate::dashboard) fn sparkline(look: &QueueLook) -> String {
    let max = look.waiting.iter().copied().max().unwrap_or(0).max(1);
    let step = 100.0 / to_f64(look.waiting.len().saturating_sub(1).max(1) as u64);
    let mut path = String::new();
    for (index, waiting) in look.waiting.iter().enumerate() {
        let (x, y) = (step * to_f64(index as u64), 22.0 - 20.0 * to_f64(*waiting) / to_f64(max));
        let _ = write!(path, "{}{x:.1} {y:.1}", if index == 0 { "M" } else { "L" });
    }
    if look.waiting.len() == 1 {
        path.push_str("H100");
    }
    format!(
        r#"<svg class="spark" viewBox="0 0 100 24" width="100" height="24" aria-hidden="true"><path d="{path}"/></svg>"#
    )
}

/// Lines over time, each with its class. All share one scale.
pub(in crate::dashboard) fn lines(series: &[(&str, Vec<(Millis, f64)>)]) -> String {
    let points = || series.iter().flat_map(|(_, points)| points);
    let max = points().map(|(_, value)| *value).fold(0.0_f64, f64::max);
    let scale = round_up(max);
    let (first, last) =
        (points().map(|(at, _)| *at).min().unwrap_or(0), points().map(|(at, _)| *at).max().unwrap_or(0));
    let span = to_f64((last - first).max(1).unsigned_abs());
    let mut svg = format!(
        r#"<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" aria-hidden="true"><path class="plot-grid" d="M0 {TOP}H{WIDTH}M0 {}H{WIDTH}M0 {}H{WIDTH}"/>"#,
        f64::midpoint(HEIGHT, TOP),
        HEIGHT - 1.0,
    );
    for (class, points) in series {
        let mut path = String::new();
        for (at, value) in points {
            let x = WIDTH * to_f64((at - first).unsigned_abs()) / span;
            let y = HEIGHT - 1.0 - (HEIGHT - TOP - 1.0) * value / scale;
            let _ = write!(path, "{}{x:.1} {y:.1}", if path.is_empty() { "M" } else { "L" });
        }
        if !path.is_empty() {
            let _ = write!(svg, r#"<path class="{class}" d="{path}"/>"#);
        }
    }
    svg.push_str("</svg>");
    let _ = write!(svg, r#"<span class="plot-scale">{}</span>"#, scale_text(scale));
    svg
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
    fn a_plot_has_a_line_for_each_series_and_survives_none_and_one_point() {
        assert_eq!(lines(&[]).matches("<path").count(), 1, "the grid alone");
        let svg = lines(&[("a", vec![(0, 1.0), (1000, 3.0)]), ("b", vec![(0, 0.0)])]);
        assert!(svg.contains(r#"<path class="a" d="M0.0 "#) && svg.contains(r#"class="b""#), "{svg}");
        assert!(svg.contains(r#"<span class="plot-scale">5</span>"#) && !svg.contains("NaN"), "{svg}");
        assert_eq!([0.5, 1.0, 3.0, 5.0, 11.0, 40.0].map(round_up).map(scale_text), ["1", "1", "5", "5", "20", "50"]);
    }
}
