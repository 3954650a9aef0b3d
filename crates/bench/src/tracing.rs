//! What tracing costs: jobs processed without an exporter, at the default sampling and with every trace; and what a POST
//! notices when the receiver is killed.

use std::{
    net::TcpListener,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::Instant,
};

use futures_util::future::try_join_all;
use testkit::binary_path;
use tokio::sync::Notify;

use crate::{
    galley::{BenchDurability, BenchGalley, noop_job},
    report::{BenchReport, median, percentile_of},
    scope::BenchScope,
};

const QUEUE: &str = "traced";
/// Jobs in one request: each request has one trace, and its jobs are recorded or not together.
const BATCH_SIZE: u32 = 10;
/// Requests at a time while their times are taken, and how many each connection sends.
const CONNECTIONS: usize = 8;
const POSTS: u32 = 4000;

/// Which traces are recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Recorded {
    Nothing,
    Default,
    All,
}

impl Recorded {
    const ALL: [Self; 3] = [Self::Nothing, Self::Default, Self::All];

    fn name(self) -> &'static str {
        match self {
            Self::Nothing => "no exporter",
            Self::Default => "the default sampling, a tenth",
            Self::All => "every trace",
        }
    }

    fn variables(self, url: &str) -> Vec<(&str, &str)> {
        match self {
            Self::Nothing => Vec::new(),
            Self::Default => vec![("GALLEY__TELEMETRY__OTLP_ENDPOINT", url)],
            Self::All => {
                vec![("GALLEY__TELEMETRY__OTLP_ENDPOINT", url), ("GALLEY__TELEMETRY__SAMPLER", "always_on")]
            }
        }
    }
}

/// A receiver in a process of its own that keeps nothing.
struct Receiver {
    process: Child,
    url: String,
}

impl Receiver {
    fn start() -> anyhow::Result<Self> {
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let mut command = Command::new(binary_path("otlp-receiver"));
        let process =
            command.arg(address.to_string()).arg("discard").stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
        Ok(Self { process, url: format!("http://{address}") })
    }

    fn kill(&mut self) -> anyhow::Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        Ok(())
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

pub(crate) async fn run(durability: BenchDurability, scope: BenchScope) -> anyhow::Result<BenchReport> {
    let mut report = BenchReport::new("tracing");
    let jobs = scope.jobs();
    let (mut rates, mut alive, mut killed) = (vec![Vec::new(); Recorded::ALL.len()], Vec::new(), Vec::new());
    for _ in 0..scope.rounds() {
        for (recorded, rates) in Recorded::ALL.into_iter().zip(&mut rates) {
            let receiver = Receiver::start()?;
            let variables = recorded.variables(&receiver.url);
            let galley = BenchGalley::start_with(durability, &variables).await;
            galley.enqueue_repeated(&noop_job(QUEUE), jobs, BATCH_SIZE).await?;
            let worker = galley.start_worker(QUEUE, &variables).await;
            rates.push(galley.completed_per_second(QUEUE, jobs).await?);
            worker.terminate().await;
            let stats = galley.stats(QUEUE).await?;
            report.check(stats.has_only_completed(u64::from(jobs)), || format!("{recorded:?}: {}", stats.to_line()));
        }
        let mut receiver = Receiver::start()?;
        let url = receiver.url.clone();
        let galley = BenchGalley::start_with(durability, &Recorded::All.variables(&url)).await;
        // The first ones warm up
        let _ = post_times(&galley, scope.of(POSTS) / 4, &Milestone::after(u32::MAX)).await?;
        alive.push(percentile_of(post_times(&galley, scope.of(POSTS), &Milestone::after(u32::MAX)).await?, 99));
        // In the midst of them, however fast they are
        let some = Milestone::after(scope.of(POSTS));
        let kill = async {
            some.reached.notified().await;
            receiver.kill()
        };
        let (times, ()) = tokio::try_join!(post_times(&galley, scope.of(POSTS), &some), kill)?;
        killed.push(percentile_of(times, 99));
    }
    report.add_note(format!(
        "medians of {} rounds of {jobs} no-op jobs, enqueued {BATCH_SIZE} in a request; one queue-worker, defaults; a receiver \
         of spans on the same machine. POSTs: {CONNECTIONS} connections, every trace recorded",
        scope.rounds()
    ));
    for (recorded, rates) in Recorded::ALL.into_iter().zip(&rates) {
        report.add_figure(format!("processed with {}", recorded.name()), median(rates.clone()), "1/s");
    }
    let ratio = |which: usize| median(rates[which].iter().zip(&rates[0]).map(|(own, none)| own / none).collect());
    report.add_with_goal("default sampling / no exporter", ratio(1), "", ">= 0.95");
    report.add_figure("every trace / no exporter", ratio(2), "");
    report.add_figure("POST, receiver alive: 99 of 100 within", median(alive.clone()), "ms");
    report.add_figure("POST, receiver killed: 99 of 100 within", median(killed.clone()), "ms");
    let ratios = killed.iter().zip(&alive).map(|(killed, alive)| killed / alive).collect();
    report.add_with_goal("POST p99: receiver killed / alive", median(ratios), "", "< 1.2");
    Ok(report)
}

/// Tells when a number of POSTs were answered.
struct Milestone {
    answered: AtomicU32,
    after: u32,
    reached: Notify,
}

impl Milestone {
    fn after(after: u32) -> Self {
        Self { answered: AtomicU32::new(0), after, reached: Notify::new() }
    }

    fn count(&self) {
        if self.answered.fetch_add(1, Relaxed) + 1 == self.after {
            self.reached.notify_one();
        }
    }
}

/// How long each POST took, in milliseconds: `posts` on each connection.
async fn post_times(galley: &BenchGalley, posts: u32, milestone: &Milestone) -> anyhow::Result<Vec<f64>> {
    let job = noop_job("posted");
    let senders = (0..CONNECTIONS).map(|_| async {
        let mut connection = galley.connect().await?;
        let mut times = Vec::with_capacity(posts as usize);
        for _ in 0..posts {
            let began = Instant::now();
            connection.post("/ojs/v1/jobs", &job).await?;
            times.push(began.elapsed().as_secs_f64() * 1000.0);
            milestone.count();
        }
        anyhow::Ok(times)
    });
    Ok(try_join_all(senders).await?.concat())
}
