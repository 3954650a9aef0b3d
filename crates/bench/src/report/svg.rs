//! Plots as SVG: bars and lines, nothing else. Written here, because a library for plots is larger than all of this program.

use std::fmt::Write;

const WIDTH: f64 = 760.0;
const LINE_HEIGHT: f64 = 420.0;
const BAR_HEIGHT: f64 = 24.0;
const LEFT: f64 = 250.0;
const MARGIN: f64 = 64.0;
const TITLE_HEIGHT: f64 = 40.0;
const COLORS: [&str; 4] = ["#1f5fa8", "#c2571a", "#3c7d3c", "#7a4b9c"];
/// Readable on a white and on a dark page.
const HEAD: &str = "<style>text{font:13px sans-serif;fill:#222}.t{font-size:15px;font-weight:bold}\
                    .s{fill:#555}</style><rect width='100%' height='100%' fill='#fff'/>";

/// What is drawn.
#[derive(Debug, Clone)]
pub(crate) enum BenchPlot {
    /// A bar for each name; the first is Galley's.
    Bars { name: &'static str, title: String, bars: Vec<(String, f64)> },
    /// Lines over a logarithmic axis; the second has its own scale on the right.
    Lines { name: &'static str, title: String, x: String, y: String, y2: String, points: Vec<(f64, f64, f64)> },
}

impl BenchPlot {
    /// The end of the file's name.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Bars { name, .. } | Self::Lines { name, .. } => name,
        }
    }

    pub(crate) fn to_svg(&self) -> String {
        match self {
            Self::Bars { title, bars, .. } => bars_svg(title, bars),
            Self::Lines { title, x, y, y2, points, .. } => lines_svg(title, [x, y, y2], points),
        }
    }
}

fn open(height: f64, title: &str) -> String {
    format!(
        "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {height}' width='{WIDTH}' height='{height}'>{HEAD}\n\
         <text class='t' x='12' y='24'>{}</text>\n",
        escape(title)
    )
}

fn bars_svg(title: &str, bars: &[(String, f64)]) -> String {
    let rows = u32::try_from(bars.len()).unwrap_or(u32::MAX);
    let mut svg = open(TITLE_HEIGHT + BAR_HEIGHT * f64::from(rows) + 12.0, title);
    let most = bars.iter().map(|(_, value)| *value).fold(1.0, f64::max);
    for (row, (name, value)) in (0..rows).zip(bars) {
        let y = TITLE_HEIGHT + BAR_HEIGHT * f64::from(row);
        let width = (WIDTH - LEFT - 90.0) * value / most;
        let color = COLORS[usize::from(row > 0)];
        let _ = writeln!(
            svg,
            "<text x='{:.0}' y='{:.0}' text-anchor='end'>{}</text><rect x='{LEFT}' y='{:.0}' width='{width:.1}' \
             height='16' fill='{color}'/><text class='s' x='{:.0}' y='{:.0}'>{}</text>",
            LEFT - 8.0,
            y + 13.0,
            escape(name),
            y,
            LEFT + width + 6.0,
            y + 13.0,
            short(*value),
        );
    }
    svg + "</svg>\n"
}

/// Where values stand on the page.
struct Scale {
    from: f64,
    to: f64,
    start: f64,
    end: f64,
    is_log: bool,
}

impl Scale {
    fn at(&self, value: f64) -> f64 {
        let (from, to, value) =
            if self.is_log { (self.from.log10(), self.to.log10(), value.log10()) } else { (self.from, self.to, value) };
        let part = if to > from { (value - from) / (to - from) } else { 0.5 };
        self.start + part * (self.end - self.start)
    }
}

/// An axis: its label, the values on it, where it stands, the side of its numbers, its color.
type Side<'a> = (&'a String, fn(&(f64, f64, f64)) -> f64, f64, &'static str, &'static str);

fn lines_svg(title: &str, [x, y, y2]: [&String; 3], points: &[(f64, f64, f64)]) -> String {
    let mut svg = open(LINE_HEIGHT, title);
    let (bottom, right) = (LINE_HEIGHT - 50.0, WIDTH - MARGIN);
    let of = |pick: fn(&(f64, f64, f64)) -> f64| points.iter().map(pick);
    let least = of(|point| point.0).fold(f64::INFINITY, f64::min);
    let across = Scale {
        from: least,
        to: of(|point| point.0).fold(least, f64::max),
        start: MARGIN + 10.0,
        end: right - 10.0,
        is_log: true,
    };
    for (point, _, _) in points {
        let at = across.at(*point);
        let _ = writeln!(
            svg,
            "<line x1='{at:.1}' x2='{at:.1}' y1='{TITLE_HEIGHT}' y2='{bottom}' stroke='#eee'/>\
             <text class='s' x='{at:.1}' y='{:.0}' text-anchor='middle'>{}</text>",
            bottom + 18.0,
            short(*point)
        );
    }
    let middle = WIDTH / 2.0;
    let _ = writeln!(svg, "<text x='{middle}' y='{:.0}' text-anchor='middle'>{}</text>", bottom + 38.0, escape(x));
    let sides: [Side<'_>; 2] =
        [(y, |point| point.1, MARGIN, "end", COLORS[0]), (y2, |point| point.2, right, "start", COLORS[1])];
    for (label, pick, axis, anchor, color) in sides {
        let values: Vec<(f64, f64)> =
            points.iter().map(|point| (point.0, pick(point))).filter(|v| v.1.is_finite()).collect();
        if label.is_empty() || values.is_empty() {
            continue;
        }
        let most = values.iter().map(|value| value.1).fold(f64::MIN_POSITIVE, f64::max);
        let up = Scale { from: 0.0, to: most * 1.1, start: bottom, end: TITLE_HEIGHT + 20.0, is_log: false };
        let line: Vec<String> = values.iter().map(|(x, y)| format!("{:.1},{:.1}", across.at(*x), up.at(*y))).collect();
        let _ = writeln!(svg, "<polyline fill='none' stroke='{color}' stroke-width='2' points='{}'/>", line.join(" "));
        for (x, y) in &values {
            let _ = writeln!(svg, "<circle cx='{:.1}' cy='{:.1}' r='3.5' fill='{color}'/>", across.at(*x), up.at(*y));
        }
        for part in 0..=4 {
            let value = most * f64::from(part) / 4.0;
            let offset = if anchor == "end" { -6.0 } else { 6.0 };
            let _ = writeln!(
                svg,
                "<text x='{:.0}' y='{:.1}' text-anchor='{anchor}' fill='{color}' style='fill:{color}'>{}</text>",
                axis + offset,
                up.at(value) + 4.0,
                short(value)
            );
        }
        // The right label ends at the border of the page
        let (at, anchor) = if anchor == "end" { (12.0, "start") } else { (WIDTH - 12.0, "end") };
        let _ = writeln!(
            svg,
            "<text x='{at}' y='{:.0}' text-anchor='{anchor}' style='fill:{color}'>{}</text>",
            TITLE_HEIGHT + 4.0,
            escape(label)
        );
    }
    svg + "</svg>\n"
}

/// 1.5M, 40k, 850, 3.2
fn short(value: f64) -> String {
    let (value, unit) = match value {
        value if value >= 999_500.0 => (value / 1e6, "M"),
        value if value >= 1000.0 => (value / 1e3, "k"),
        value => (value, ""),
    };
    let text = if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.1}") };
    format!("{}{unit}", text.strip_suffix(".0").unwrap_or(&text))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        for (value, expected) in [
            (0.0, "0"),
            (3.25, "3.2"),
            (850.0, "850"),
            (1000.0, "1k"),
            (45_700.0, "45.7k"),
            (999_900.0, "1M"),
            (1.5e6, "1.5M"),
        ] {
            assert_eq!(short(value), expected);
        }
    }

    #[test]
    fn a_plot_has_all_its_points_and_escapes_names() {
        let bars =
            BenchPlot::Bars { name: "b", title: "<a>".into(), bars: vec![("x & y".into(), 5.0), ("z".into(), 10.0)] };
        let svg = bars.to_svg();
        assert!(
            svg.contains("&lt;a&gt;") && svg.contains("x &amp; y") && svg.matches("height='16'").count() == 2,
            "{svg}"
        );
        let points = vec![(1.0, 10.0, 1.0), (1000.0, 20.0, f64::NAN)];
        let lines =
            BenchPlot::Lines { name: "l", title: "t".into(), x: "x".into(), y: "y".into(), y2: "z".into(), points };
        let svg = lines.to_svg();
        assert!(svg.matches("<circle").count() == 3 && !svg.contains("NaN"), "{svg}");
    }
}
