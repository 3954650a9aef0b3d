//! Curves: how many jobs a second, and how soon handlers start, while one number grows. Each point has a Redis of its own.

mod point;

use clap::{Args, ValueEnum};

use self::point::ScalePoint;
use crate::{
    galley::BenchDurability,
    report::{BenchPlot, BenchReport},
    scope::BenchScope,
};

/// A point below this part of the best before it is where a curve bends.
const BEND: f64 = 0.8;

/// Which curves.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct ScaleOptions {
    /// Only these; all by default.
    #[arg(long, value_delimiter = ',', value_enum)]
    axis: Vec<ScaleAxis>,
}

/// What grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ScaleAxis {
    /// Jobs that wait.
    Waiting,
    /// Queues that one worker serves, of which one has jobs.
    Queues,
    /// Priorities of the queue, of which one has jobs.
    Priorities,
    /// Queue-workers.
    Workers,
    /// Bytes of an argument.
    Payload,
    /// Event streams of a channel.
    Readers,
    /// Records of finished jobs.
    Results,
}

impl ScaleAxis {
    const ALL: [Self; 7] =
        [Self::Waiting, Self::Queues, Self::Priorities, Self::Workers, Self::Payload, Self::Readers, Self::Results];

    fn points(self, scope: BenchScope) -> Vec<u32> {
        let all: &[u32] = match self {
            Self::Waiting | Self::Results => &[1000, 10_000, 100_000, 1_000_000],
            Self::Queues => &[1, 10, 100, 1000],
            Self::Priorities => &[1, 10, 50, 201],
            Self::Workers => &[1, 2, 4, 8],
            Self::Payload => &[100, 1024, 10_240, 102_400, 900_000],
            Self::Readers => &[10, 100, 1000, 10_000],
        };
        match all {
            // A sample: the ends, or what takes seconds
            [first, .., before, last] if scope.is_quick() => {
                vec![*first, if *last > 500_000 { *before } else { *last }]
            }
            all => all.to_vec(),
        }
    }

    fn label(self) -> &'static str {
        match self {
            Self::Waiting => "jobs that wait",
            Self::Queues => "queues of one worker, one of them busy",
            Self::Priorities => "priorities of the queue, one of them busy",
            Self::Workers => "queue-workers on two processors",
            Self::Payload => "bytes of the argument",
            Self::Readers => "event streams of the channel",
            Self::Results => "records of finished jobs",
        }
    }

    /// The file of its plot.
    fn plot_name(self) -> &'static str {
        match self {
            Self::Waiting => "scale-waiting",
            Self::Queues => "scale-queues",
            Self::Priorities => "scale-priorities",
            Self::Workers => "scale-workers",
            Self::Payload => "scale-payload",
            Self::Readers => "scale-readers",
            Self::Results => "scale-results",
        }
    }

    /// What the last point should have of the first: no cliff.
    fn goal(self) -> &'static str {
        match self {
            Self::Waiting => ">= 0.9",
            Self::Queues | Self::Priorities => ">= 0.5",
            Self::Results => ">= 0.8",
            Self::Workers | Self::Payload | Self::Readers => "",
        }
    }

    fn rate_label(self) -> &'static str {
        if self == Self::Readers { "deliveries per second" } else { "jobs processed per second" }
    }

    fn time_label(self) -> &'static str {
        if self == Self::Readers { "publish to reader, p99 in ms" } else { "due to start, p99 in ms" }
    }
}

pub(crate) async fn run(
    durability: BenchDurability,
    scope: BenchScope,
    options: &ScaleOptions,
) -> anyhow::Result<BenchReport> {
    let mut report = BenchReport::new("scale");
    report.add_note(
        "one Redis, gateway and queue-worker for each point; p99 is that of an open load of 200 jobs a second on a queue \
         of its own, served by the same worker",
    );
    for axis in ScaleAxis::ALL.into_iter().filter(|axis| options.axis.is_empty() || options.axis.contains(axis)) {
        let mut points = Vec::new();
        for count in axis.points(scope) {
            let point = ScalePoint::measure(&mut report, axis, count, durability, scope).await?;
            let name = format!("{count} {}", axis.label());
            report.add_figure(format!("{name}: {}", axis.rate_label()), point.per_second, "1/s");
            if point.p99_ms.is_finite() {
                report.add_figure(format!("{name}: {}", axis.time_label()), point.p99_ms, "ms");
            }
            points.push((f64::from(count), point.per_second, point.p99_ms));
        }
        add_shape(&mut report, axis, &points);
        report.add_plot(BenchPlot::Lines {
            name: axis.plot_name(),
            title: format!("{} by {}", axis.rate_label(), axis.label()),
            x: axis.label().to_owned(),
            y: axis.rate_label().to_owned(),
            y2: axis.time_label().to_owned(),
            points,
        });
    }
    Ok(report)
}

/// The last point beside the first, and where the curve bends.
fn add_shape(report: &mut BenchReport, axis: ScaleAxis, points: &[(f64, f64, f64)]) {
    let (Some(first), Some(last)) = (points.first(), points.last()) else { return };
    let what = format!("{}: {} / {}", axis.label(), last.0, first.0);
    report.add_with_goal(what, last.1 / first.1, "", axis.goal());
    let mut best = 0.0_f64;
    for (count, rate, _) in points {
        if *rate < best * BEND {
            report.add_note(format!("{}: bends at {count}: {:.2} of the best before", axis.label(), rate / best));
            return;
        }
        best = best.max(*rate);
    }
    report.add_note(format!("{}: no point is below {BEND} of the best before", axis.label()));
}
