//! Load that does not wait: every job has the moment at which it is due to be enqueued, and its lateness counts from there,
//! whether or not the answers before it were late (no coordinated omission).

use std::{
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, ensure};
use hdrhistogram::Histogram;
use serde_json::{Value, json};
use testkit::ServiceProcess;
use tokio::{sync::mpsc, task::JoinSet};

use crate::{
    galley::{BenchGalley, job_id},
    http::HttpConnection,
    numbers::count_as_f64,
};

/// Connections, of which a free one is used; when none is free, the wait for it counts.
const CONNECTIONS: usize = 64;
/// A minute, in microseconds.
const MAX_MICROS: u64 = 60_000_000;
const DIGITS: u8 = 3;
const WARM_UP: Duration = Duration::from_secs(1);

/// A stream of jobs.
pub(crate) struct OpenLoad {
    pub(crate) queue: String,
    pub(crate) per_second: u32,
    pub(crate) time: Duration,
    /// Bytes of the argument.
    pub(crate) argument_bytes: usize,
}

/// How late handlers started, in microseconds, and how late this process sent: what the load itself was late.
pub(crate) struct Lateness {
    pub(crate) starts: Histogram<u64>,
    pub(crate) sends: Histogram<u64>,
}

impl Lateness {
    /// Milliseconds that this share of the starts was late at most.
    pub(crate) fn start_ms(&self, quantile: f64) -> f64 {
        count_as_f64(self.starts.value_at_quantile(quantile)) / 1000.0
    }

    /// The same of the sends.
    pub(crate) fn send_ms(&self, quantile: f64) -> f64 {
        count_as_f64(self.sends.value_at_quantile(quantile)) / 1000.0
    }
}

/// Starts a worker that notes how late its handler starts.
pub(crate) async fn start_stopwatch(galley: &BenchGalley, queues: &str, variables: &[(&str, &str)]) -> ServiceProcess {
    let mut all = vec![("GALLEY__QUEUE_WORKER__QUEUES", queues), ("GALLEY__BRIDGE__LIST", "")];
    all.extend_from_slice(variables);
    let worker = ServiceProcess::start_worker("stopwatch-worker", &galley.redis, &all).await;
    worker.wait_until_ready().await;
    worker
}

impl OpenLoad {
    /// Sends it, after a second of the same that does not count; a stopwatch must be running on the queue.
    pub(crate) async fn run(&self, galley: &BenchGalley) -> anyhow::Result<Lateness> {
        self.send(galley, WARM_UP).await?;
        self.collect(galley).await?;
        let sends = self.send(galley, self.time).await?;
        let starts = self.collect(galley).await?;
        let jobs = u64::from(self.per_second) * self.time.as_secs();
        ensure!(starts.len() == jobs, "{} of {jobs} jobs were started once", starts.len());
        Ok(Lateness { starts, sends })
    }

    async fn send(&self, galley: &BenchGalley, time: Duration) -> anyhow::Result<Histogram<u64>> {
        let jobs = u32::try_from(u64::from(self.per_second) * time.as_secs())?;
        let connections = connect_times(CONNECTIONS, || galley.connect()).await?;
        let mut sends = Histogram::new_with_max(MAX_MICROS, DIGITS)?;
        send_at_pace(connections, jobs, self.per_second, |mut connection, due_micros| {
            sends.saturating_record(micros_now().saturating_sub(due_micros));
            let body = self.job(due_micros);
            async move {
                connection.post("/ojs/v1/jobs", &body).await?;
                Ok(connection)
            }
        })
        .await?;
        Ok(sends)
    }

    /// What the worker noted since the last time.
    async fn collect(&self, galley: &BenchGalley) -> anyhow::Result<Histogram<u64>> {
        let mut connection = galley.connect().await?;
        let body = json!({ "type": "bench.lateness", "args": [], "options": { "queue": self.queue } }).to_string();
        let answer: Value = serde_json::from_str(&connection.post("/ojs/v1/jobs", &body).await?)?;
        let path = format!("/ojs/v1/jobs/{}?wait_ms=30000", job_id(&answer["job"])?);
        let answer: Value = serde_json::from_str(&connection.get(&path).await?)?;
        let mut histogram = Histogram::new_with_max(MAX_MICROS, DIGITS)?;
        for pair in answer["job"]["result"].as_array().context("the worker tells what it noted")? {
            let numbers = (pair[0].as_u64(), pair[1].as_u64());
            let (Some(micros), Some(count)) = numbers else { anyhow::bail!("a pair of numbers: {pair}") };
            histogram.saturating_record_n(micros, count);
        }
        Ok(histogram)
    }

    fn job(&self, due_micros: u64) -> String {
        let filling = "x".repeat(self.argument_bytes);
        json!({ "type": "bench.start", "args": [due_micros, filling], "options": { "queue": self.queue } }).to_string()
    }
}

/// Connections for [`send_at_pace`].
pub(crate) async fn connect_times<F: Future<Output = anyhow::Result<HttpConnection>>>(
    count: usize,
    mut connect: impl FnMut() -> F,
) -> anyhow::Result<Vec<HttpConnection>> {
    let mut connections = Vec::with_capacity(count);
    for _ in 0..count {
        connections.push(connect().await?);
    }
    Ok(connections)
}

/// Sends each job when it is due, on the connection that is free next. `send` gets that connection and the moment at
/// which the job was due, in microseconds, and gives the connection back once the job is answered.
pub(crate) async fn send_at_pace<F: Future<Output = anyhow::Result<HttpConnection>> + Send + 'static>(
    connections: Vec<HttpConnection>,
    jobs: u32,
    per_second: u32,
    mut send: impl FnMut(HttpConnection, u64) -> F,
) -> anyhow::Result<()> {
    let (free, mut free_connections) = mpsc::channel(connections.len());
    for connection in connections {
        free.send(connection).await?;
    }
    let mut due = pace(jobs, Duration::from_secs(1) / per_second);
    let mut senders: JoinSet<anyhow::Result<()>> = JoinSet::new();
    while let Some(due_micros) = due.recv().await {
        let sending = send(free_connections.recv().await.context("a connection")?, due_micros);
        let free = free.clone();
        senders.spawn(async move { free.send(sending.await?).await.context("the load goes on") });
        while let Some(sent) = senders.try_join_next() {
            sent??;
        }
    }
    while let Some(sent) = senders.join_next().await {
        sent??;
    }
    Ok(())
}

/// Says when each job is due, at that moment. A thread, because timers of the runtime are a millisecond late.
fn pace(jobs: u32, interval: Duration) -> mpsc::UnboundedReceiver<u64> {
    let (due, receiver) = mpsc::unbounded_channel();
    thread::spawn(move || {
        let (began, began_micros) = (Instant::now(), micros_now());
        for number in 0..jobs {
            let after = interval * number;
            thread::sleep(after.saturating_sub(began.elapsed()));
            let at = began_micros + u64::try_from(after.as_micros()).unwrap_or(u64::MAX);
            if due.send(at).is_err() {
                return;
            }
        }
    });
    receiver
}

fn micros_now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
    u64::try_from(now).unwrap_or(u64::MAX)
}
