//! After the last fault: waits until every job has ended, and asks for every one of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use reqwest::Method;
use serde_json::Value;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::{
    client::CheckClient,
    history::{CheckedJobView, HistoryEvent, HistoryWriter, read_histories},
    plan::{JobRunner, JobsPlan},
};

/// A job that has not ended by then is stuck: the last lease is long over, on a slow machine too.
const MAX_DRAIN: Duration = Duration::from_mins(3);
const POLL_INTERVAL: Duration = Duration::from_millis(300);
/// How often jobs that nobody finds are looked for when there are no others.
const MAX_MISSING_POLLS: u32 = 10;
/// Requests at a time.
const CONCURRENCY: usize = 16;

/// Waits and asks; how long it took until all jobs had ended.
pub(crate) async fn ask_for_every_job(
    client: &Arc<CheckClient>,
    folder: &Path,
    plan: &JobsPlan,
) -> anyhow::Result<Duration> {
    let writer = HistoryWriter::open(folder, "asker")?;
    let (start, mut over) = (Instant::now(), BTreeMap::<String, CheckedJobView>::new());
    let mut workflows = BTreeMap::<String, (String, Vec<String>)>::new();
    let mut polls_without_others = 0;
    let seen = loop {
        // Before it is read who heard of what: a job of a cron entry that waits is known to nobody
        let nothing_waits = nothing_waits(client).await?;
        let (mut ids, mut workflow_ids) = known_ids(folder, plan)?;
        workflow_ids.retain(|id| workflows.get(id).is_none_or(|(state, _)| state == "running" || state == "missing"));
        workflows.extend(ask_for_each(client, workflow_ids, look_up_workflow).await?);
        ids.extend(workflows.values().flat_map(|(_, members)| members.iter().cloned()));
        ids.retain(|id| !over.contains_key(id));
        let seen = ask_for_each(client, ids, look_up_job).await?;
        let (ended, waiting): (Vec<_>, Vec<_>) = seen.into_iter().partition(CheckedJobView::is_over);
        over.extend(ended.into_iter().map(|view| (view.id.clone(), view)));
        // What nobody finds may yet appear, but not for long
        let is_missing = waiting.iter().all(|view| view.state == "missing");
        polls_without_others = if is_missing { polls_without_others + 1 } else { 0 };
        let is_found = waiting.is_empty() || polls_without_others > MAX_MISSING_POLLS;
        let is_done = nothing_waits && is_found && workflows.values().all(|(state, _)| state != "running");
        if is_done || start.elapsed() > MAX_DRAIN {
            break waiting;
        }
        sleep(POLL_INTERVAL).await;
    };
    let drained = start.elapsed();
    for (id, (state, members)) in workflows {
        writer.append(HistoryEvent::WorkflowEnded { id, state, members });
    }
    // Once more, so that what changes after its end shows
    let ids = over.into_keys().chain(seen.into_iter().map(|view| view.id)).collect();
    for job in ask_for_each(client, ids, look_up_job).await? {
        writer.append(HistoryEvent::Looked { job, is_final: true });
    }
    for queue in JobRunner::ALL.map(JobRunner::queue) {
        let (_, body) = client.send_until_answered(Method::GET, &format!("/ojs/v1/queues/{queue}"), None).await?;
        let completed = body["queue"]["completed"].as_u64().unwrap_or(0);
        writer.append(HistoryEvent::Counted { queue: queue.to_owned(), completed });
    }
    Ok(drained)
}

/// Whether no queue has a job that has not ended.
async fn nothing_waits(client: &CheckClient) -> anyhow::Result<bool> {
    for queue in JobRunner::ALL.map(JobRunner::queue) {
        let (_, body) = client.send_until_answered(Method::GET, &format!("/ojs/v1/queues/{queue}"), None).await?;
        let left = |state: &str| body["queue"][state].as_u64().unwrap_or(0);
        if ["available", "active", "waiting", "pending"].into_iter().any(|state| left(state) > 0) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Every job and every workflow that somebody heard of.
fn known_ids(folder: &Path, plan: &JobsPlan) -> anyhow::Result<(BTreeSet<String>, BTreeSet<String>)> {
    let kinds: BTreeMap<u32, _> = plan.requests.iter().map(|request| (request.number, request.kind)).collect();
    let (mut jobs, mut workflows) = (BTreeSet::new(), BTreeSet::new());
    for entry in read_histories(folder)? {
        match entry.event {
            HistoryEvent::Acknowledged { request, ids, .. } if kinds[&request].is_workflow() => workflows.extend(ids),
            HistoryEvent::Acknowledged { ids, .. } => jobs.extend(ids),
            HistoryEvent::Started { id, .. } => {
                jobs.insert(id);
            }
            _ => {}
        }
    }
    Ok((jobs, workflows))
}

/// Asks for each, some at a time.
async fn ask_for_each<T, F>(
    client: &Arc<CheckClient>,
    ids: BTreeSet<String>,
    ask: fn(Arc<CheckClient>, String) -> F,
) -> anyhow::Result<Vec<T>>
where
    T: Send + 'static,
    F: Future<Output = anyhow::Result<T>> + Send + 'static,
{
    let ids: Vec<String> = ids.into_iter().collect();
    let mut asking = JoinSet::new();
    for part in ids.chunks(ids.len().div_ceil(CONCURRENCY).max(1)) {
        let (client, part) = (client.clone(), part.to_vec());
        asking.spawn(async move {
            let mut answers = Vec::with_capacity(part.len());
            for id in part {
                answers.push(ask(client.clone(), id).await?);
            }
            anyhow::Ok(answers)
        });
    }
    let mut all = Vec::new();
    while let Some(part) = asking.join_next().await {
        all.extend(part??);
    }
    Ok(all)
}

async fn look_up_job(client: Arc<CheckClient>, id: String) -> anyhow::Result<CheckedJobView> {
    client.look_up(&id).await
}

/// Its id, and its state and its jobs.
async fn look_up_workflow(client: Arc<CheckClient>, id: String) -> anyhow::Result<(String, (String, Vec<String>))> {
    let (status, body) = client.send_until_answered(Method::GET, &format!("/ojs/v1/workflows/{id}"), None).await?;
    if status != 200 {
        return Ok((id, ("missing".to_owned(), Vec::new())));
    }
    let workflow = &body["workflow"];
    let state = workflow["state"].as_str().context("a state")?.to_owned();
    let ids = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(|member| Some(member["id"].as_str()?.to_owned())).collect()
    };
    let members = [ids(&workflow["members"]), ids(&workflow["callbacks"])].concat();
    Ok((id, (state, members)))
}
