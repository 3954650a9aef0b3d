//! Those who send requests. What was not answered is sent again with the same key, until it is answered.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context;
use rand::seq::IndexedRandom;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::{
    task::{JoinSet, spawn_blocking},
    time::{Instant, sleep, sleep_until},
};

use crate::{
    client::{CheckClient, RequestOutcome},
    handling::redriven_path,
    history::{HistoryEvent, HistoryWriter},
    plan::{JobsPlan, PlannedJobKind, PlannedRequest},
    verdict::CONFLICT_KEY,
};

/// Between two tries.
const RETRY_PAUSE: Duration = Duration::from_millis(150);
/// A request that has no answer by then never gets one.
const MAX_WAIT: Duration = Duration::from_secs(90);
/// How often a request that was answered is sent again.
const REPEATS: u32 = 2;
/// After the acknowledgement, so that the job runs.
const STOP_AFTER: Duration = Duration::from_millis(400);
/// How often one job is looked up while the run goes on.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// Those who send.
pub(crate) struct JobProducers {
    pub(crate) client: Arc<CheckClient>,
    writer: Arc<HistoryWriter>,
    folder: PathBuf,
    seed: u64,
    acknowledged: Mutex<Vec<String>>,
}

impl JobProducers {
    pub(crate) fn new(client: Arc<CheckClient>, folder: &Path, seed: u64) -> anyhow::Result<Self> {
        let writer = Arc::new(HistoryWriter::open(folder, "producer")?);
        Ok(Self { client, writer, folder: folder.to_owned(), seed, acknowledged: Mutex::default() })
    }

    /// Sends all requests, each at its time.
    pub(crate) async fn send_all(self: Arc<Self>, plan: &JobsPlan, start: Instant) -> anyhow::Result<()> {
        let mut sending = JoinSet::new();
        let (ordered, others): (Vec<_>, Vec<_>) =
            plan.requests.iter().cloned().partition(|request| request.kind == PlannedJobKind::Ordered);
        let mut lanes: Vec<Vec<PlannedRequest>> = others.into_iter().map(|request| vec![request]).collect();
        for request in ordered {
            match lanes.iter_mut().find(|lane| lane[0].kind == request.kind && lane[0].group == request.group) {
                Some(lane) => lane.push(request),
                None => lanes.push(vec![request]),
            }
        }
        for lane in lanes {
            let producers = self.clone();
            sending.spawn(async move {
                for request in lane {
                    sleep_until(start + Duration::from_millis(request.at_ms)).await;
                    producers.send_one(&request).await?;
                }
                anyhow::Ok(())
            });
        }
        while let Some(sent) = sending.join_next().await {
            sent??;
        }
        Ok(())
    }

    /// Looks up jobs that were acknowledged, at random: what has ended must stay so.
    pub(crate) async fn look_at_random(self: Arc<Self>) {
        loop {
            sleep(LOOK_INTERVAL).await;
            let chosen = {
                let ids = self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner);
                ids.choose(&mut rand::rng()).cloned()
            };
            if let Some(id) = chosen
                && let Ok(job) = self.client.look_up(&id).await
                && job.is_over()
            {
                self.append(HistoryEvent::Looked { job, is_final: false }).await;
            }
        }
    }

    async fn append(&self, event: HistoryEvent) {
        let writer = self.writer.clone();
        // It waits for the disk
        let _ = spawn_blocking(move || writer.append(event)).await;
    }

    async fn send_one(&self, request: &PlannedRequest) -> anyhow::Result<()> {
        let Some(ids) = self.send_until_acknowledged(request).await? else { return Ok(()) };
        match request.kind {
            PlannedJobKind::Repeated => {
                for _ in 0..REPEATS {
                    self.send_until_acknowledged(request).await?;
                }
            }
            PlannedJobKind::Conflicting => self.send_conflict(request).await?,
            PlannedJobKind::Cancelled => self.cancel(&ids[0]).await?,
            PlannedJobKind::Stopped => {
                sleep(STOP_AFTER).await;
                self.cancel(&ids[0]).await?;
            }
            PlannedJobKind::Redriven => self.redrive(&ids[0], request.jobs[0].key).await?,
            _ => {}
        }
        if !request.kind.is_workflow() {
            self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner).extend(ids);
        }
        Ok(())
    }

    /// The ids of what was made; none if it was refused.
    async fn send_until_acknowledged(&self, request: &PlannedRequest) -> anyhow::Result<Option<Vec<String>>> {
        let (number, body, key) = (request.number, request.body(), request.idempotency_key(self.seed));
        let deadline = Instant::now() + MAX_WAIT;
        while Instant::now() < deadline {
            self.append(HistoryEvent::Sent { request: number }).await;
            match self.client.send(Method::POST, request.path(), Some(&key), Some(&body)).await {
                RequestOutcome::Answered(status @ (200 | 201), answer) => {
                    let ids = read_ids(request, &answer).with_context(|| format!("{body}: {answer}"))?;
                    let is_created = status == 201;
                    self.append(HistoryEvent::Acknowledged { request: number, ids: ids.clone(), is_created }).await;
                    return Ok(Some(ids));
                }
                RequestOutcome::Answered(status, _) => {
                    self.append(HistoryEvent::Refused { request: number, status, is_conflict: false }).await;
                    return Ok(None);
                }
                RequestOutcome::Unknown(reason) => {
                    self.append(HistoryEvent::Unanswered { request: number, reason }).await;
                    sleep(RETRY_PAUSE).await;
                }
            }
        }
        Ok(None)
    }

    /// The same key with another body: it must be refused.
    async fn send_conflict(&self, request: &PlannedRequest) -> anyhow::Result<()> {
        let mut body = request.body();
        body["args"][0] = json!(CONFLICT_KEY + request.jobs[0].key);
        let (key, deadline) = (request.idempotency_key(self.seed), Instant::now() + MAX_WAIT);
        while Instant::now() < deadline {
            match self.client.send(Method::POST, request.path(), Some(&key), Some(&body)).await {
                RequestOutcome::Answered(409, _) => {
                    let request = request.number;
                    self.append(HistoryEvent::Refused { request, status: 409, is_conflict: true }).await;
                    return Ok(());
                }
                RequestOutcome::Answered(..) => return Ok(()),
                RequestOutcome::Unknown(_) => sleep(RETRY_PAUSE).await,
            }
        }
        Ok(())
    }

    /// Cancels a job. An earlier try may have done it, and its answer was lost.
    async fn cancel(&self, id: &str) -> anyhow::Result<()> {
        let (status, _) = self.client.send_until_answered(Method::DELETE, &format!("/ojs/v1/jobs/{id}"), None).await?;
        if status == 200 || self.client.look_up(id).await?.state == "cancelled" {
            self.append(HistoryEvent::Cancelled { id: id.to_owned() }).await;
        }
        Ok(())
    }

    /// Waits until a job is a dead letter, then runs it again.
    async fn redrive(&self, id: &str, key: u32) -> anyhow::Result<()> {
        let deadline = Instant::now() + MAX_WAIT;
        while self.client.look_up(id).await?.state != "discarded" {
            if Instant::now() > deadline {
                // The verdict says what became of it
                return Ok(());
            }
            sleep(2 * RETRY_PAUSE).await;
        }
        std::fs::write(redriven_path(&self.folder, key), "")?;
        let path = format!("/ojs/v1/dead-letter/{id}/retry");
        let (status, _) = self.client.send_until_answered(Method::POST, &path, Some(&json!({}))).await?;
        if status == 200 || self.client.look_up(id).await?.state != "discarded" {
            self.append(HistoryEvent::Redriven { id: id.to_owned() }).await;
        }
        Ok(())
    }
}

/// The ids in an answer.
fn read_ids(request: &PlannedRequest, answer: &Value) -> anyhow::Result<Vec<String>> {
    let id = |object: &Value| object["id"].as_str().map(str::to_owned).context("an id");
    match request.kind {
        PlannedJobKind::Batch => answer["jobs"].as_array().context("jobs")?.iter().map(id).collect(),
        kind if kind.is_workflow() => Ok(vec![id(&answer["workflow"])?]),
        _ => Ok(vec![id(&answer["job"])?]),
    }
}
