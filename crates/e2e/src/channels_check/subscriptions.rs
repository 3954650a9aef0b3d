//! The durable subscriptions of a run: what they are, waiting until they are through, and what came of them.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::{
    Delivered, LOOK_EVERY,
    delivered::{Delivery, Response, Strike, Tally, judge_deliveries, judge_jobs, judge_order},
    endpoint::Endpoint,
    stage::Stage,
    verdict::{History, Position},
};
use testkit::http::Connection;

/// Longest wait until everything has been delivered after the last fault: order may have piled up behind workers that were
/// killed, and goes on one message at a time.
const SETTLE: Duration = Duration::from_mins(5);
/// A worker that has a message may be silent so long: so short that messages change hands, and so long that a machine that is
/// short of processors answers in time.
const ACK_DEADLINE_MS: u64 = 2_000;
/// One channel in so many goes to the broadcast: each of its messages is a request of every worker.
const BROADCAST_ONE_IN: usize = 4;
/// Channels of the broadcast at most: as many as a subscription may name.
const MOST_BROADCAST: usize = 100;
/// Jobs that are fetched in one go, as many as there may be.
const FETCHED_AT_ONCE: usize = 100;
/// Nothing explains that some messages came again: so many pass, as long as nothing is lost. Noting that a message was accepted
/// may take longer than the window in which a fault counts, on a machine that is short of processors.
const MOST_UNEXPLAINED: usize = 10;

const SHARED: &str = "check-shared";
const ORDERED: &str = "check-ordered";
const BROADCAST: &str = "check-broadcast";
const QUEUED: &str = "check-queued";
const QUEUE: &str = "check";
const ALL: [&str; 4] = [SHARED, ORDERED, BROADCAST, QUEUED];

/// The subscriptions, and where they deliver to.
pub(super) struct Subscriptions {
    stage: Arc<Stage>,
    endpoint: Arc<Endpoint>,
    channels: Vec<String>,
    workers: usize,
}

#[derive(Debug, Deserialize)]
struct Progress {
    lag: u64,
    in_flight: u64,
    retrying: u64,
    dead: u64,
    #[serde(default)]
    workers: Vec<Value>,
}

impl Subscriptions {
    /// Makes them. There is no message yet, so that each begins with the first.
    pub(super) async fn make(
        stage: Arc<Stage>,
        endpoint: Arc<Endpoint>,
        channels: &[String],
        workers: usize,
    ) -> anyhow::Result<Self> {
        let subscriptions = Self { stage, endpoint, channels: channels.to_vec(), workers };
        let retry = json!({
            "max_attempts": 50, "initial_interval": "PT0.05S", "max_interval": "PT0.5S", "on_exhaustion": "dead_letter",
        });
        let http = json!({ "http": { "url": format!("http://{}/", subscriptions.endpoint.address) } });
        let queue = json!({ "queue": { "queue": QUEUE, "type": "test.echo" } });
        for (name, deliver, more) in [
            (SHARED, &http, json!({ "channels": ["check.*"] })),
            (ORDERED, &http, json!({ "channels": ["check.*"], "ordering": "channel" })),
            (BROADCAST, &http, json!({ "channels": subscriptions.broadcast_channels(), "mode": "broadcast" })),
            (QUEUED, &queue, json!({ "channels": ["check.*"] })),
        ] {
            let mut body = json!({ "deliver": deliver, "retry": retry, "ack_deadline_ms": ACK_DEADLINE_MS });
            for (member, value) in more.as_object().into_iter().flatten() {
                body[member] = value.clone();
            }
            subscriptions.put(name, &body.to_string()).await.with_context(|| name.to_owned())?;
        }
        Ok(subscriptions)
    }

    /// Waits until each worker takes part in the broadcast.
    pub(super) async fn wait_for_workers(&self) -> anyhow::Result<()> {
        let is_there = |progress: &Progress| progress.workers.len() == self.workers;
        ensure!(self.wait(&[BROADCAST], is_there).await?.is_none(), "not every worker serves the broadcast");
        Ok(())
    }

    /// Waits until everything is delivered; what is wrong then, one line each.
    pub(super) async fn settle(&self) -> anyhow::Result<Vec<String>> {
        let is_through = |progress: &Progress| progress.lag + progress.in_flight + progress.retrying == 0;
        let mut findings = Vec::new();
        if let Some(stuck) = self.wait(&ALL, is_through).await? {
            findings.push(format!("not everything was delivered {SETTLE:?} after the last fault: {stuck}"));
        }
        for name in ALL {
            let progress = self.progress(name).await?;
            if progress.dead > 0 {
                findings.push(format!("{name}: {} dead letters, and nothing was refused for good", progress.dead));
            }
        }
        Ok(findings)
    }

    /// Compares what came with the histories.
    pub(super) async fn judge(
        &self,
        histories: &HashMap<&str, History>,
        strikes: &[Strike],
    ) -> anyhow::Result<Vec<Delivered>> {
        let deadline = Duration::from_millis(ACK_DEADLINE_MS);
        let mut all = Vec::new();
        for name in [SHARED, ORDERED] {
            let (mut tally, deliveries) = (Tally::default(), self.endpoint.deliveries(name));
            for (channel, deliveries) in self.channels.iter().zip(&deliveries) {
                let history = &histories[channel.as_str()];
                let mut judged = judge_deliveries(history, deliveries, strikes, deadline);
                if name == ORDERED {
                    judged.findings.extend(judge_order(history, deliveries));
                }
                tally.add(channel, judged);
            }
            all.push(delivered(name, tally));
        }
        let (mut tally, deliveries) = (Tally::default(), self.endpoint.deliveries(BROADCAST));
        for (channel, deliveries) in
            self.channels.iter().zip(&deliveries).step_by(BROADCAST_ONE_IN).take(MOST_BROADCAST)
        {
            for worker in 0..self.workers {
                let of_it = of_worker(deliveries, worker);
                let judged = judge_deliveries(&histories[channel.as_str()], &of_it, strikes, deadline);
                tally.add(&format!("{channel} at worker {worker}"), judged);
            }
        }
        all.push(delivered(BROADCAST, tally));
        let (mut tally, jobs) = (Tally::default(), self.jobs().await?);
        for channel in &self.channels {
            let jobs = jobs.get(channel).map(Vec::as_slice).unwrap_or_default();
            let findings = judge_jobs(&histories[channel.as_str()], jobs);
            tally.add(channel, Tally { accepted: jobs.len() as u64, findings, ..Tally::default() });
        }
        all.push(delivered(QUEUED, tally));
        if let Some(first) = all.first_mut() {
            first.tally.findings.extend(self.endpoint.findings());
        }
        Ok(all)
    }

    fn broadcast_channels(&self) -> Vec<&String> {
        self.channels.iter().step_by(BROADCAST_ONE_IN).take(MOST_BROADCAST).collect()
    }

    /// Waits until something holds of all of these; what the first is like of which it did not in time.
    async fn wait(&self, names: &[&str], holds: impl Fn(&Progress) -> bool) -> anyhow::Result<Option<String>> {
        let deadline = Instant::now() + SETTLE;
        for name in names {
            loop {
                let progress = self.progress(name).await?;
                if holds(&progress) {
                    break;
                }
                if Instant::now() >= deadline {
                    return Ok(Some(format!("{name} {progress:?}")));
                }
                sleep(LOOK_EVERY).await;
            }
        }
        Ok(None)
    }

    async fn progress(&self, name: &str) -> anyhow::Result<Progress> {
        #[derive(Deserialize)]
        struct Answer {
            subscription: Shown,
        }
        #[derive(Deserialize)]
        struct Shown {
            progress: Progress,
        }
        let answer = self.connection().await?.get(&format!("/v1/subscriptions/{name}")).await?;
        let answer: Answer = serde_json::from_str(&answer).with_context(|| answer.clone())?;
        Ok(answer.subscription.progress)
    }

    async fn put(&self, name: &str, body: &str) -> anyhow::Result<()> {
        let request = format!(
            "PUT /v1/subscriptions/{name} HTTP/1.1\r\nhost: galley\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        );
        let (status, answer) = self.connection().await?.send(&request).await?;
        ensure!(status == 201 || status == 200, "it was answered with {status}: {answer}");
        Ok(())
    }

    /// The messages that became jobs, by channel, as often as they did.
    async fn jobs(&self) -> anyhow::Result<HashMap<String, Vec<Position>>> {
        #[derive(Deserialize)]
        struct Fetched {
            jobs: Vec<Job>,
        }
        #[derive(Deserialize)]
        struct Job {
            args: [Message; 1],
        }
        #[derive(Deserialize)]
        struct Message {
            id: String,
            channel: String,
        }
        let mut connection = self.connection().await?;
        let fetch = json!({ "queues": [QUEUE], "count": FETCHED_AT_ONCE }).to_string();
        let mut all: HashMap<String, Vec<Position>> = HashMap::new();
        loop {
            let answer = connection.post("/ojs/v1/workers/fetch", &fetch).await?;
            let fetched: Fetched = serde_json::from_str(&answer).with_context(|| answer.clone())?;
            if fetched.jobs.is_empty() {
                return Ok(all);
            }
            for Job { args: [message] } in fetched.jobs {
                all.entry(message.channel).or_default().push(message.id.parse()?);
            }
        }
    }

    async fn connection(&self) -> anyhow::Result<Connection> {
        Connection::open(self.stage.pick(0, None).context("no gateway")?).await
    }
}

fn delivered(name: &'static str, mut tally: Tally) -> Delivered {
    if tally.unexplained.len() > MOST_UNEXPLAINED {
        let count = tally.unexplained.len();
        tally.findings.push(format!("{count} messages came again after they were accepted, and nothing had broken"));
        tally.findings.extend(tally.unexplained.iter().take(MOST_UNEXPLAINED).cloned());
    }
    Delivered { name, tally }
}

/// What a worker of a broadcast delivered. A message that failed there goes on as a job, which any worker may deliver in its place, with
/// the attempt that comes next: it did not make the one before that itself. Attempts that timed out before the endpoint had read them
/// are not noted, so there may be none of the worker's own.
fn of_worker(deliveries: &[Delivery], worker: usize) -> Vec<Delivery> {
    let is_its_own = |one: &Delivery| one.worker == worker;
    let failed: HashSet<(usize, Position, u32)> = deliveries
        .iter()
        .filter(|one| one.response != Response::Accepted)
        .map(|one| (one.worker, one.position, one.attempt))
        .collect();
    let is_job = |one: &Delivery| one.attempt > 1 && !failed.contains(&(one.worker, one.position, one.attempt - 1));
    let accepted: HashSet<Position> = deliveries
        .iter()
        .filter(|one| is_its_own(one) && one.response == Response::Accepted)
        .map(|one| one.position)
        .collect();
    let is_in_its_place = |one: &Delivery| is_job(one) && !accepted.contains(&one.position);
    deliveries.iter().filter(|one| is_its_own(one) || is_in_its_place(one)).copied().collect()
}
