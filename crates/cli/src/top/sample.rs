//! One look at the gateway.

use std::time::Instant;

use serde_json::Value;

use crate::{
    failure::{CliError, CliResult},
    gateway_client::GatewayCall,
    session::{Session, items},
    table::member,
};

/// Queues and workers that are looked at.
const MAX_ITEMS: usize = 1000;

/// What the gateway said, and when.
#[derive(Debug, Clone)]
pub(super) struct TopSample {
    pub(super) at: Instant,
    pub(super) queues: Vec<QueueSample>,
    /// Whether there are more queues than were looked at.
    pub(super) has_more: bool,
    pub(super) workers: Vec<WorkerSample>,
    /// Absent if the key may not see it.
    pub(super) last_minutes: Option<LastMinutes>,
}

/// What happened in the last five minutes, from the history that Galley keeps.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct LastMinutes {
    pub(super) completed: u64,
    /// Attempts that failed.
    pub(super) failed: u64,
    /// How long attempts took and how long jobs waited before, in ms, of the last period with attempts: median and p99.
    pub(super) ran: Option<(u64, u64)>,
    pub(super) waited: Option<(u64, u64)>,
}

/// A queue.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct QueueSample {
    pub(super) name: String,
    pub(super) is_paused: bool,
    pub(super) is_drained: bool,
    /// Available, scheduled, retryable, waiting for a limit.
    pub(super) waiting: u64,
    pub(super) running: u64,
    pub(super) dead: u64,
    /// Since Galley counts: their growth is a rate.
    pub(super) completed: u64,
    pub(super) failed: u64,
}

/// A worker.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct WorkerSample {
    pub(super) name: String,
    pub(super) state: String,
    pub(super) active_jobs: u64,
    pub(super) concurrency: u64,
    pub(super) queues: String,
}

/// Asks for queues and workers at the same time.
pub(super) async fn take(session: &Session) -> CliResult<TopSample> {
    let queues = session.gateway.send(GatewayCall::get(format!("/ojs/v1/queues?limit={MAX_ITEMS}")));
    let workers = session.gateway.send(GatewayCall::get("/ojs/v1/workers?limit=100"));
    let history = session.gateway.send(GatewayCall::get("/ojs/v1/admin/stats/history?period=5m&since=-PT5M"));
    let (queues, workers, history) = tokio::join!(queues, workers, history);
    let queues = queues?.value()?;
    // A key that is limited to some queues does not see workers
    let workers = match workers {
        Ok(answer) => answer.value()?,
        Err(CliError::Refused(refusal)) if refusal.status == 403 => Value::Null,
        Err(problem) => return Err(problem),
    };
    let last_minutes = match history {
        Ok(answer) => Some(read_history(items(&answer.value()?, "data"))),
        Err(CliError::Refused(_)) => None,
        Err(problem) => return Err(problem),
    };
    Ok(TopSample {
        last_minutes,
        at: Instant::now(),
        has_more: queues["more"] == true,
        queues: items(&queues, "queues").iter().map(read_queue).collect(),
        workers: items(&workers, "items").iter().map(read_worker).collect(),
    })
}

fn read_queue(queue: &Value) -> QueueSample {
    let number = |name: &str| queue[name].as_u64().unwrap_or(0);
    QueueSample {
        name: member(queue, "name"),
        is_paused: queue["paused"] == true,
        is_drained: queue["closed"] == true,
        waiting: number("available") + number("waiting"),
        running: number("active"),
        dead: number("dead"),
        completed: number("completed"),
        failed: number("discarded") + number("retried"),
    }
}

fn read_history(periods: &[Value]) -> LastMinutes {
    let sum = |name: &str| periods.iter().filter_map(|period| period[name].as_u64()).sum();
    let last = |median: &str, p99: &str| {
        periods.iter().rev().find_map(|period| Some((period[median].as_u64()?, period[p99].as_u64()?)))
    };
    LastMinutes {
        completed: sum("completed"),
        failed: sum("failed"),
        ran: last("latency_p50_ms", "latency_p99_ms"),
        waited: last("wait_p50_ms", "wait_p99_ms"),
    }
}

fn read_worker(worker: &Value) -> WorkerSample {
    WorkerSample {
        name: member(worker, "name"),
        state: member(worker, "state"),
        active_jobs: worker["active_jobs"].as_u64().unwrap_or(0),
        concurrency: worker["concurrency"].as_u64().unwrap_or(0),
        queues: items(worker, "queues").iter().map(crate::table::shown).collect::<Vec<_>>().join(","),
    }
}
