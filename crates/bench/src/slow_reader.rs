//! Readers who take one byte a second, beside fifty who take what there is: what the others notice of them, and how much of
//! the gateway's memory they take. Windows with and without them take turns, so that both see the same machine.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use clap::Args;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpSocket,
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep},
};

use crate::{
    channels::{BenchPublisher, BenchReaders, BenchServerKind, GALLEY_PATH, timestamped_message},
    galley::{BenchDurability, BenchGalley},
    machine::resident_bytes,
    numbers::count_as_f64,
    report::{BenchReport, percentile_of},
};

/// Bytes of a message, and messages per second: a slow reader falls behind by 1.3 MB each second, more than all buffers of
/// the kernel hold in a window.
const MESSAGE_BYTES: usize = 32 * 1024;
const MESSAGES_PER_SECOND: u32 = 40;
/// Least room for what a slow reader has not taken.
const RECEIVE_BUFFER_BYTES: u32 = 4096;
const ONE_BYTE_EVERY: Duration = Duration::from_secs(1);
/// What comes late is waited for.
const STALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Before a window: those who left are forgotten.
const WINDOW_PAUSE: Duration = Duration::from_millis(500);

/// The default of `channels.ring_bytes`.
const RING_BYTES: usize = 256 * 1024;
/// What one reader holds who is behind: a page as it came from Redis, and as it is sent.
const READER_PAGE_BYTES: usize = 2 * (128 * 1024 + MESSAGE_BYTES);
/// What its connection holds: what actix buffers before it waits, with the message that goes beyond.
const CONNECTION_BYTES: usize = 64 * 1024 + MESSAGE_BYTES;
/// What the allocator may keep for later of what was given back, and what else goes on meanwhile.
const ALLOCATOR_BYTES: usize = 8 << 20;

/// What is measured.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct SlowReaderOptions {
    /// Readers who take one byte a second.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    slow: u32,
    /// Readers who take what there is.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
    readers: u32,
    /// Windows of each kind.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// How long a window is.
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
}

impl Default for SlowReaderOptions {
    fn default() -> Self {
        Self { slow: 10, readers: 50, rounds: 4, seconds: 6 }
    }
}

pub(crate) async fn run(durability: BenchDurability, options: SlowReaderOptions) -> anyhow::Result<BenchReport> {
    let mut report = BenchReport::new("slow-reader");
    let SlowReaderOptions { slow, readers, rounds, seconds } = options;
    let galley = BenchGalley::start(durability).await;
    let address = galley.gateway.address();
    let bench_readers =
        BenchReaders::connect(address, readers, &BenchServerKind::EventStream.handshake_steps()).await?;
    let mut publisher = BenchPublisher::http(galley.gateway.address(), GALLEY_PATH).await?;
    let (mut without, mut with, mut grown, mut gone) = (Vec::new(), Vec::new(), f64::MIN, 0);
    let process = galley.gateway.process_id();
    let window = Duration::from_secs(seconds);
    // The first is not counted: what is there once is made in it
    measure_window(&mut report, process, &mut publisher, &bench_readers, window).await?;
    for _ in 0..rounds {
        let (times, before) = measure_window(&mut report, process, &mut publisher, &bench_readers, window).await?;
        without.extend(times);
        let lagging = SlowReaders::connect(address, slow).await?;
        let (times, beside) = measure_window(&mut report, process, &mut publisher, &bench_readers, window).await?;
        with.extend(times);
        grown = grown.max(beside - before);
        gone += lagging.disconnect().await;
        sleep(WINDOW_PAUSE).await;
    }
    bench_readers.disconnect().await;
    let sent = count_as_f64(u64::from(MESSAGES_PER_SECOND) * seconds) * count_as_f64(MESSAGE_BYTES as u64);
    report.add_note(format!("{readers} event streams, {MESSAGES_PER_SECOND} messages/s of {MESSAGE_BYTES} bytes"));
    report
        .add_note(format!("{rounds} windows of {seconds} s each without and with {slow} readers of one byte a second"));
    report.add_figure("published in a window, for each reader", sent / 1e6, "MB");
    report.add_times("publish to reader, without slow ones", &without, "");
    report.add_times("publish to reader, beside slow ones", &with, "");
    let ratio = percentile_of(with, 99) / percentile_of(without, 99);
    report.add_with_goal("publish to reader, p99: beside slow ones / without", ratio, "", "<= 1.5");
    report.add_figure("slow readers that were cut off", count_as_f64(gone), "");
    let bound = RING_BYTES + slow as usize * (READER_PAGE_BYTES + CONNECTION_BYTES) + ALLOCATOR_BYTES;
    report.add_figure("gateway: most memory in a window, beside slow ones - without", grown / 1e6, "MB");
    report.add_figure("the bound: the ring, and of each its page and buffer", count_as_f64(bound as u64) / 1e6, "MB");
    report.add_figure("what they had not taken", sent * f64::from(slow) / 1e6, "MB");
    report
        .check(grown <= count_as_f64(bound as u64), || format!("the gateway grew by {grown} bytes, more than {bound}"));
    Ok(report)
}

/// Publishes for a while; how long messages took to those who take them, and the most memory that the gateway had in use.
async fn measure_window(
    report: &mut BenchReport,
    gateway: u32,
    publisher: &mut BenchPublisher,
    bench_readers: &BenchReaders,
    window: Duration,
) -> anyhow::Result<(Vec<f64>, f64)> {
    let mut ticks = interval(Duration::from_secs(1) / MESSAGES_PER_SECOND);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    bench_readers.take_count();
    bench_readers.start_timing();
    let (began, mut published, mut memory) = (Instant::now(), 0, 0.0_f64);
    while began.elapsed() < window {
        ticks.tick().await;
        publisher.publish(&timestamped_message(MESSAGE_BYTES)).await?;
        published += 1;
        memory = memory.max(resident_bytes(gateway));
    }
    let expected = published * bench_readers.size();
    let came = bench_readers.wait_for(expected, STALL_TIMEOUT).await;
    report.check(came == expected, || {
        format!("{came} of {expected} deliveries came, {} readers are gone", bench_readers.disconnected())
    });
    Ok((bench_readers.stop_timing(), memory))
}

/// Readers who take one byte a second.
struct SlowReaders {
    readers: JoinSet<()>,
    disconnected: Arc<AtomicU64>,
}

impl SlowReaders {
    async fn connect(server: SocketAddr, count: u32) -> anyhow::Result<Self> {
        let (mut readers, gone) = (JoinSet::new(), Arc::new(AtomicU64::new(0)));
        for _ in 0..count {
            let socket = TcpSocket::new_v4()?;
            socket.set_recv_buffer_size(RECEIVE_BUFFER_BYTES)?;
            let mut stream = socket.connect(server).await?;
            for (request, _) in BenchServerKind::EventStream.handshake_steps() {
                stream.write_all(&request).await?;
            }
            let gone = gone.clone();
            readers.spawn(async move {
                let mut ticks = interval(ONE_BYTE_EVERY);
                while stream.read_exact(&mut [0]).await.is_ok() {
                    ticks.tick().await;
                }
                gone.fetch_add(1, Relaxed);
            });
        }
        Ok(Self { readers, disconnected: gone })
    }

    /// Ends them; how many had been cut off.
    async fn disconnect(mut self) -> u64 {
        self.readers.shutdown().await;
        self.disconnected.load(Relaxed)
    }
}
