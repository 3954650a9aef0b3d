//! How much is measured: all of it, or a sample that takes a fraction of the time.

use clap::Args;

/// Rounds and jobs of a row.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct BenchScope {
    /// A sample: one round, a tenth of the jobs, the ends of every curve.
    #[arg(long, global = true)]
    quick: bool,
    /// Leave out other systems.
    #[arg(long, global = true)]
    without_peers: bool,
    /// Rounds, of which the medians are shown.
    #[arg(long, global = true, value_parser = clap::value_parser!(u32).range(1..=20))]
    rounds: Option<u32>,
}

/// Jobs of a row of throughput, and of a sample.
const JOBS: u32 = 200_000;
const SAMPLE_DIVISOR: u32 = 10;
const ROUNDS: u32 = 3;

impl BenchScope {
    pub(crate) fn is_quick(self) -> bool {
        self.quick
    }

    /// Whether other systems take part; a sample has no time for them.
    pub(crate) fn has_peers(self) -> bool {
        !self.without_peers && !self.quick
    }

    pub(crate) fn rounds(self) -> u32 {
        self.rounds.unwrap_or(if self.quick { 1 } else { ROUNDS })
    }

    pub(crate) fn jobs(self) -> u32 {
        self.of(JOBS)
    }

    /// That many, or the tenth part.
    pub(crate) fn of(self, count: u32) -> u32 {
        if self.quick { count / SAMPLE_DIVISOR } else { count }
    }
}
