//! How soon a handler starts after its job was due to be enqueued, at a steady rate that does not wait for answers.

use std::time::Duration;

use crate::{
    galley::{BenchDurability, BenchGalley},
    open_load::{OpenLoad, start_stopwatch},
    report::BenchReport,
    scope::BenchScope,
};

const QUEUE: &str = "prompt";
const JOBS_PER_SECOND: u32 = 1000;
const SECONDS: u32 = 20;
const ARGUMENT_BYTES: usize = 200;

pub(crate) async fn run(durability: BenchDurability, scope: BenchScope) -> anyhow::Result<BenchReport> {
    let mut report = BenchReport::new("latency");
    let galley = BenchGalley::start(durability).await;
    let _worker = start_stopwatch(&galley, QUEUE, &[]).await;
    let seconds = scope.of(SECONDS).max(3);
    let load = OpenLoad {
        queue: QUEUE.to_owned(),
        per_second: JOBS_PER_SECOND,
        time: Duration::from_secs(seconds.into()),
        argument_bytes: ARGUMENT_BYTES,
    };
    let lateness = load.run(&galley).await?;
    report.add_note(format!(
        "{JOBS_PER_SECOND} POSTs a second for {seconds} s, sent when due whether or not earlier ones were answered; a \
         handler in Rust notes when it starts"
    ));
    report.add_with_goal("due to enqueue to start of the handler, p50", lateness.start_ms(0.5), "ms", "<= 1");
    report.add_with_goal("due to enqueue to start of the handler, p99", lateness.start_ms(0.99), "ms", "<= 5");
    report.add_figure("due to enqueue to start of the handler, p99.9", lateness.start_ms(0.999), "ms");
    report.add_figure("due to enqueue to start of the handler, max", lateness.start_ms(1.0), "ms");
    report.add_figure("of it, late in the load itself, p50", lateness.send_ms(0.5), "ms");
    report.add_figure("of it, late in the load itself, p99", lateness.send_ms(0.99), "ms");
    Ok(report)
}
