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
    POLL_INTERVAL, SubscriptionCheck,
    cluster::GatewayPool,
    delivery_check::{CheckedDelivery, CheckedResponse, DeliveryTally, check_deliveries, check_jobs, check_order},
    endpoint::CheckedEndpoint,
    faults::FaultWindow,
    reader_check::{CheckedHistory, CheckedPosition},
};
use testkit::http::HttpConnection;

/// Longest wait until everything has been delivered after the last fault: order may have piled up behind workers that were
/// killed, and goes on one message at a time.
const DRAIN_TIMEOUT: Duration = Duration::from_mins(5);
/// A worker that has a message may be silent so long: so short that messages change hands, and so long that a machine that is
/// short of processors answers in time.
const ACK_DEADLINE_MS: u64 = 5_000;
/// One channel in that many goes to the broadcast: each of its messages is a request of every worker.
const BROADCAST_CHANNEL_ONE_IN: usize = 4;
/// Channels of the broadcast at most: as many as a subscription may name.
const MAX_BROADCAST_CHANNELS: usize = 100;
/// Jobs that are fetched in one go, as many as there may be.
const FETCH_COUNT: usize = 100;
/// Nothing explains that some messages came again: that many pass, as long as nothing is lost. Noting that a message was accepted
/// may take longer than the window in which a fault counts, on a machine that is short of processors.
const MAX_UNEXPLAINED: usize = 10;

const SHARED: &str = "check-shared";
const ORDERED: &str = "check-ordered";
const BROADCAST: &str = "check-broadcast";
const QUEUED: &str = "check-queued";
const QUEUE: &str = "check";
const ALL_SUBSCRIPTIONS: [&str; 4] = [SHARED, ORDERED, BROADCAST, QUEUED];

/// The subscriptions, and where they deliver to.
pub(super) struct CheckedSubscriptions {
    gateway_pool: Arc<GatewayPool>,
    endpoint: Arc<CheckedEndpoint>,
    channels: Vec<String>,
    workers: usize,
}

#[derive(Debug, Deserialize)]
struct CheckedProgress {
    lag: u64,
    in_flight: u64,
    retrying: u64,
    dead: u64,
    #[serde(default)]
    workers: Vec<Value>,
}

impl CheckedSubscriptions {
    /// Makes them. There is no message yet, so that each begins with the first.
    pub(super) async fn create(
        stage: Arc<GatewayPool>,
        endpoint: Arc<CheckedEndpoint>,
        channels: &[String],
        workers: usize,
    ) -> anyhow::Result<Self> {
        let subscriptions = Self { gateway_pool: stage, endpoint, channels: channels.to_vec(), workers };
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
        let is_there = |progress: &CheckedProgress| progress.workers.len() == self.workers;
        ensure!(self.wait_until(&[BROADCAST], is_there).await?.is_none(), "not every worker serves the broadcast");
        Ok(())
    }

    /// Waits until everything is delivered; what is wrong then, one line each.
    pub(super) async fn wait_until_drained(&self) -> anyhow::Result<Vec<String>> {
        let is_through = |progress: &CheckedProgress| progress.lag + progress.in_flight + progress.retrying == 0;
        let mut findings = Vec::new();
        if let Some(stuck) = self.wait_until(&ALL_SUBSCRIPTIONS, is_through).await? {
            findings.push(format!("not everything was delivered {DRAIN_TIMEOUT:?} after the last fault: {stuck}"));
        }
        for name in ALL_SUBSCRIPTIONS {
            let progress = self.progress(name).await?;
            if progress.dead > 0 {
                findings.push(format!("{name}: {} dead letters, and nothing was refused for good", progress.dead));
            }
        }
        Ok(findings)
    }

    /// Compares what came with the histories.
    pub(super) async fn check(
        &self,
        histories: &HashMap<&str, CheckedHistory>,
        strikes: &[FaultWindow],
    ) -> anyhow::Result<Vec<SubscriptionCheck>> {
        let deadline = Duration::from_millis(ACK_DEADLINE_MS);
        let mut all = Vec::new();
        for name in [SHARED, ORDERED] {
            let (mut tally, deliveries) = (DeliveryTally::default(), self.endpoint.take_deliveries(name));
            for (channel, deliveries) in self.channels.iter().zip(&deliveries) {
                let history = &histories[channel.as_str()];
                let mut judged = check_deliveries(history, deliveries, strikes, deadline);
                if name == ORDERED {
                    judged.findings.extend(check_order(history, deliveries));
                }
                tally.merge(channel, judged);
            }
            all.push(subscription_check(name, tally));
        }
        let (mut tally, deliveries) = (DeliveryTally::default(), self.endpoint.take_deliveries(BROADCAST));
        for (channel, deliveries) in
            self.channels.iter().zip(&deliveries).step_by(BROADCAST_CHANNEL_ONE_IN).take(MAX_BROADCAST_CHANNELS)
        {
            for worker in 0..self.workers {
                let of_it = deliveries_of_worker(deliveries, worker);
                let judged = check_deliveries(&histories[channel.as_str()], &of_it, strikes, deadline);
                tally.merge(&format!("{channel} at worker {worker}"), judged);
            }
        }
        all.push(subscription_check(BROADCAST, tally));
        let (mut tally, jobs) = (DeliveryTally::default(), self.fetch_jobs().await?);
        for channel in &self.channels {
            let jobs = jobs.get(channel).map(Vec::as_slice).unwrap_or_default();
            let findings = check_jobs(&histories[channel.as_str()], jobs);
            tally.merge(channel, DeliveryTally { accepted: jobs.len() as u64, findings, ..DeliveryTally::default() });
        }
        all.push(subscription_check(QUEUED, tally));
        if let Some(first) = all.first_mut() {
            first.tally.findings.extend(self.endpoint.findings());
        }
        Ok(all)
    }

    fn broadcast_channels(&self) -> Vec<&String> {
        self.channels.iter().step_by(BROADCAST_CHANNEL_ONE_IN).take(MAX_BROADCAST_CHANNELS).collect()
    }

    /// Waits until something holds of all of these; what the first is like of which it did not in time.
    async fn wait_until(
        &self,
        names: &[&str],
        holds: impl Fn(&CheckedProgress) -> bool,
    ) -> anyhow::Result<Option<String>> {
        let deadline = Instant::now() + DRAIN_TIMEOUT;
        for name in names {
            loop {
                // A gateway whose Redis is slow refuses, and is asked again
                let progress = self.progress(name).await;
                if progress.as_ref().is_ok_and(&holds) {
                    break;
                }
                if Instant::now() >= deadline {
                    return Ok(Some(format!("{name} {:?}", progress?)));
                }
                sleep(POLL_INTERVAL).await;
            }
        }
        Ok(None)
    }

    async fn progress(&self, name: &str) -> anyhow::Result<CheckedProgress> {
        #[derive(Deserialize)]
        struct CheckedSubscriptionResponse {
            subscription: CheckedSubscriptionView,
        }
        #[derive(Deserialize)]
        struct CheckedSubscriptionView {
            progress: CheckedProgress,
        }
        let answer = self.connect().await?.get(&format!("/v1/subscriptions/{name}")).await?;
        let answer: CheckedSubscriptionResponse = serde_json::from_str(&answer).with_context(|| answer.clone())?;
        Ok(answer.subscription.progress)
    }

    async fn put(&self, name: &str, body: &str) -> anyhow::Result<()> {
        let request = format!(
            "PUT /v1/subscriptions/{name} HTTP/1.1\r\nhost: galley\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        );
        let (status, answer) = self.connect().await?.send(&request).await?;
        ensure!(status == 201 || status == 200, "it was answered with {status}: {answer}");
        Ok(())
    }

    /// The messages that became jobs, by channel, as often as they did.
    async fn fetch_jobs(&self) -> anyhow::Result<HashMap<String, Vec<CheckedPosition>>> {
        #[derive(Deserialize)]
        struct CheckedFetchResponse {
            jobs: Vec<CheckedJob>,
        }
        #[derive(Deserialize)]
        struct CheckedJob {
            args: [CheckedJobArgument; 1],
        }
        #[derive(Deserialize)]
        struct CheckedJobArgument {
            id: String,
            channel: String,
        }
        let mut connection = self.connect().await?;
        let fetch = json!({ "queues": [QUEUE], "count": FETCH_COUNT }).to_string();
        let mut all: HashMap<String, Vec<CheckedPosition>> = HashMap::new();
        loop {
            let answer = connection.post("/ojs/v1/workers/fetch", &fetch).await?;
            let fetched: CheckedFetchResponse = serde_json::from_str(&answer).with_context(|| answer.clone())?;
            if fetched.jobs.is_empty() {
                return Ok(all);
            }
            for CheckedJob { args: [message] } in fetched.jobs {
                all.entry(message.channel).or_default().push(message.id.parse()?);
            }
        }
    }

    async fn connect(&self) -> anyhow::Result<HttpConnection> {
        HttpConnection::open(self.gateway_pool.pick(0, None).context("no gateway")?).await
    }
}

fn subscription_check(name: &'static str, mut tally: DeliveryTally) -> SubscriptionCheck {
    if tally.unexplained.len() > MAX_UNEXPLAINED {
        let count = tally.unexplained.len();
        tally.findings.push(format!("{count} messages came again after they were accepted, and nothing had broken"));
        tally.findings.extend(tally.unexplained.iter().take(MAX_UNEXPLAINED).cloned());
    }
    SubscriptionCheck { name, tally }
}

/// What a worker of a broadcast delivered. A message that failed there goes on as a job, which any worker may deliver in its place, with
/// the attempt that comes next: it did not make the one before that itself. Attempts that timed out before the endpoint had read them
/// are not noted, so there may be none of the worker's own.
fn deliveries_of_worker(deliveries: &[CheckedDelivery], worker: usize) -> Vec<CheckedDelivery> {
    let is_its_own = |one: &CheckedDelivery| one.worker == worker;
    let failed: HashSet<(usize, CheckedPosition, u32)> = deliveries
        .iter()
        .filter(|one| one.response != CheckedResponse::Accepted)
        .map(|one| (one.worker, one.position, one.attempt))
        .collect();
    let is_job =
        |one: &CheckedDelivery| one.attempt > 1 && !failed.contains(&(one.worker, one.position, one.attempt - 1));
    let accepted: HashSet<CheckedPosition> = deliveries
        .iter()
        .filter(|one| is_its_own(one) && one.response == CheckedResponse::Accepted)
        .map(|one| one.position)
        .collect();
    let is_in_its_place = |one: &CheckedDelivery| is_job(one) && !accepted.contains(&one.position);
    deliveries.iter().filter(|one| is_its_own(one) || is_in_its_place(one)).copied().collect()
}
