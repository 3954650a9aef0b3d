//! One channel and many readers: how much is delivered, how soon, and what it costs the server.

use std::time::{Duration, Instant};

use anyhow::ensure;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::{
    readers::{BenchReaders, timestamped_message},
    servers::{BenchServer, BenchServerKind},
};
use crate::{
    galley::BenchDurability,
    machine::{processor_time_ms, proportional_bytes},
    numbers::count_as_f64,
    report::BenchReport,
};

/// Bytes of a message.
pub(super) const MESSAGE_BYTES: usize = 256;
/// Deliveries per second when the time they take is measured: what every contender can do.
const PACED_DELIVERIES: u32 = 10_000;
/// Messages per second to a single reader.
const MAX_MESSAGES_PER_SECOND: u32 = 200;
/// Messages on their way at most when it is measured how many are delivered.
const MAX_UNDELIVERED: u64 = 8;
/// No message for so long, and the rest is given up.
const STALL_TIMEOUT: Duration = Duration::from_secs(5);
/// Messages before anything is measured.
const WARM_UP: u32 = 3;
/// Freshly opened connections come to rest.
const CONNECT_PAUSE: Duration = Duration::from_millis(500);

/// What came of one contender with that many readers.
#[derive(Debug, Clone, Default)]
pub(crate) struct FanOutFigures {
    pub(crate) delivered_per_second: f64,
    pub(crate) cpu_micros_per_delivery: f64,
    pub(crate) bytes_per_connection: f64,
    pub(crate) times: Vec<f64>,
}

/// Measures one, each part for that long.
pub(crate) async fn measure(
    report: &mut BenchReport,
    kind: BenchServerKind,
    durability: BenchDurability,
    readers: u32,
    time: Duration,
) -> anyhow::Result<FanOutFigures> {
    let mut contender = BenchServer::start(kind, durability).await?;
    // The first connections cost what is there once
    let first = BenchReaders::connect(contender.address, 1, &kind.handshake_steps()).await?;
    contender.publisher.publish(&timestamped_message(MESSAGE_BYTES)).await?;
    first.wait_for(1, STALL_TIMEOUT).await;
    first.disconnect().await;
    sleep(CONNECT_PAUSE).await;
    let before = proportional_bytes(&contender.processes);
    let bench_readers = BenchReaders::connect(contender.address, readers, &kind.handshake_steps()).await?;
    sleep(CONNECT_PAUSE).await;
    let bytes_per_connection = (proportional_bytes(&contender.processes) - before) / f64::from(readers);

    for _ in 0..WARM_UP {
        contender.publisher.publish(&timestamped_message(MESSAGE_BYTES)).await?;
    }
    let warm = bench_readers.wait_for(bench_readers.size() * u64::from(WARM_UP), STALL_TIMEOUT).await;
    ensure!(
        warm == bench_readers.size() * u64::from(WARM_UP),
        "{}: {warm} deliveries to {readers} readers",
        kind.name()
    );
    bench_readers.take_count();
    let times = measure_paced(report, kind, &mut contender, &bench_readers, time).await?;
    let (delivered_per_second, cpu_micros_per_delivery) =
        measure_max_rate(report, kind, &mut contender, &bench_readers, time).await?;
    bench_readers.disconnect().await;
    Ok(FanOutFigures { delivered_per_second, cpu_micros_per_delivery, bytes_per_connection, times })
}

/// Publishes at a pace that leaves everybody time; how long messages took.
async fn measure_paced(
    report: &mut BenchReport,
    kind: BenchServerKind,
    contender: &mut BenchServer,
    bench_readers: &BenchReaders,
    time: Duration,
) -> anyhow::Result<Vec<f64>> {
    let readers = u32::try_from(bench_readers.size())?;
    let rate = (PACED_DELIVERIES / readers).clamp(1, MAX_MESSAGES_PER_SECOND);
    let mut ticks = interval(Duration::from_secs(1) / rate);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    bench_readers.start_timing();
    let (began, mut published) = (Instant::now(), 0);
    while began.elapsed() < time {
        ticks.tick().await;
        contender.publisher.publish(&timestamped_message(MESSAGE_BYTES)).await?;
        published += 1;
    }
    wait_for_deliveries(report, kind, bench_readers, published).await;
    Ok(bench_readers.stop_timing())
}

/// Publishes as fast as all readers take it; deliveries per second, and microseconds of processor time of the server for one.
async fn measure_max_rate(
    report: &mut BenchReport,
    kind: BenchServerKind,
    contender: &mut BenchServer,
    bench_readers: &BenchReaders,
    time: Duration,
) -> anyhow::Result<(f64, f64)> {
    let (began, mut published) = (Instant::now(), 0);
    let ran = processor_time_ms(&contender.processes);
    while began.elapsed() < time {
        let due = bench_readers.size() * u64::saturating_sub(published + 1, MAX_UNDELIVERED);
        ensure!(bench_readers.wait_for(due, STALL_TIMEOUT).await >= due, "{}: deliveries stopped", kind.name());
        contender.publisher.publish(&timestamped_message(MESSAGE_BYTES)).await?;
        published += 1;
    }
    let delivered = count_as_f64(wait_for_deliveries(report, kind, bench_readers, published).await);
    let ran_then = processor_time_ms(&contender.processes);
    Ok((delivered / began.elapsed().as_secs_f64(), (ran_then - ran) * 1000.0 / delivered))
}

/// Waits for the rest; how many came.
async fn wait_for_deliveries(
    report: &mut BenchReport,
    kind: BenchServerKind,
    bench_readers: &BenchReaders,
    published: u64,
) -> u64 {
    let expected = bench_readers.size() * published;
    let came = bench_readers.wait_for(expected, STALL_TIMEOUT).await;
    let (gone, name) = (bench_readers.disconnected(), kind.name());
    report.check(came == expected, || format!("{name}: {came} of {expected} deliveries, {gone} readers gone"));
    bench_readers.take_count()
}
