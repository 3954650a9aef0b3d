//! The list of workers, their reports, and directives for them.
//!
//! Every worker reports regularly; a silent one drops off the list. A directive is stored beside the list until its
//! worker has received it, so that a worker which missed the notification gets it in answer to its next report.

pub(crate) mod key;
mod report;

use std::time::Duration;

pub use key::WorkerKey;
pub use report::{Directive, IssuedDirective, RunningDetails, RunningJob, WorkerAction, WorkerRecord, WorkerState};

use crate::{
    Redis, StoreResult,
    connection::{clock::score_to_millis, notification::Notification},
    keys, script,
};
use common::{json::ObjectWriter, time::Millis};

/// How long a directive waits for its worker; a quiet directive is stored as long as the worker reports.
const DIRECTIVE_TTL: Duration = Duration::from_hours(1);
/// How long a worker that stopped reporting is shown.
const SHOWN_SILENT: Duration = Duration::from_mins(10);
/// Number of reports read at once.
const READ_BATCH: usize = 50;

/// A listed worker.
#[derive(Debug, Clone)]
pub struct ListedWorker {
    /// Its id.
    pub key: WorkerKey,
    /// Its last report.
    pub record: WorkerRecord,
    /// Its current directive.
    pub directive: Option<IssuedDirective>,
}

impl ListedWorker {
    /// The worker as clients see it.
    #[must_use]
    pub fn to_json(&self) -> String {
        let mut record = self.record.clone();
        let mut out = ObjectWriter::default();
        if self.key.is_pull() {
            out.text("id", &record.name).text("kind", "pull");
            // Its report may not show the directive yet
            match self.directive.map(|issued| issued.directive) {
                Some(Directive::Quiet) if record.state == WorkerState::Running => record.state = WorkerState::Quiet,
                Some(Directive::Terminate) => record.state = WorkerState::Terminating,
                _ => {}
            }
        } else {
            out.text("id", self.key.as_str()).text("kind", "queue-worker").text("consumer", self.key.as_str());
        }
        if let Some(issued) = self.directive {
            out.text("directive", issued.directive.as_str());
        }
        out.splice(&record.to_json());
        out.finish()
    }
}

/// The worker that an id or name matches.
#[derive(Debug, Clone)]
pub enum WorkerLookup {
    /// One worker.
    Found(Box<ListedWorker>),
    /// This many workers have that name.
    Ambiguous(usize),
    /// None.
    NotFound,
}

/// The list of workers, and directives for them. Cheap to clone.
#[derive(Clone)]
pub struct Workers {
    redis: Redis,
}

impl Workers {
    /// The workers that report to this Redis.
    #[must_use]
    pub fn new(redis: &Redis) -> Self {
        Self { redis: redis.clone() }
    }

    /// The time by Redis's clock, as far as this process knows.
    #[must_use]
    pub fn estimated_now(&self) -> Millis {
        self.redis.estimated_now()
    }

    /// Stores a worker's report, valid for `ttl`, and returns its directive. The directive to terminate is for the process
    /// that learns of it first: not for another one that has the same id later. A new worker is listed only if the list
    /// has fewer than `max` workers, if given.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn report_worker(
        &self,
        key: &WorkerKey,
        record: &WorkerRecord,
        ttl: Duration,
        max: Option<u64>,
        action: WorkerAction,
    ) -> StoreResult<Option<IssuedDirective>> {
        let (mut redis, ttl_ms) = (self.redis.clone(), ttl.as_millis().to_string());
        let silent_ms = SHOWN_SILENT.as_millis().to_string();
        let mut list = script::LIST_WORKER.key(keys::WORKERS);
        list.key(keys::SILENT_WORKERS).arg(key.as_str()).arg(&ttl_ms).arg(max.unwrap_or(0)).arg(silent_ms);
        let is_listed: bool = list.invoke_async(&mut redis).await?;
        if is_listed {
            // Until a listed worker has a report, nobody shows it
            let mut store = script::STORE_REPORT.key(keys::worker_report(key));
            store.arg(record.to_json()).arg((ttl + SHOWN_SILENT).as_millis().to_string());
            let _: i64 = store.invoke_async(&mut redis).await?;
        }
        let mut receive = script::RECEIVE_DIRECTIVE.key(keys::worker_directive(key));
        receive.arg(&ttl_ms).arg(DIRECTIVE_TTL.as_millis().to_string()).arg(action.as_str());
        receive.arg(if record.state == WorkerState::Terminating { "stopping" } else { "running" });
        receive.arg(record.instance());
        let issued: String = receive.invoke_async(&mut redis).await?;
        Ok(issued.parse().ok())
    }

    /// Removes a stopping worker from the list.
    ///
    /// # Errors
    /// Redis is unavailable: its entry expires.
    pub async fn remove_worker(&self, key: &WorkerKey) -> StoreResult<()> {
        let mut pipeline = redis::pipe();
        for list in [keys::WORKERS, keys::SILENT_WORKERS] {
            pipeline.cmd("ZREM").arg(list).arg(key.as_str());
        }
        pipeline.cmd("DEL").arg(keys::worker_report(key)).cmd("DEL").arg(keys::worker_directive(key));
        Ok(pipeline.exec_async(&mut self.redis.clone()).await?)
    }

    /// The current directive of a worker.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn directive_for(&self, key: &WorkerKey) -> StoreResult<Option<IssuedDirective>> {
        let issued: Option<String> =
            redis::cmd("GET").arg(keys::worker_directive(key)).query_async(&mut self.redis.clone()).await?;
        Ok(issued.and_then(|issued| issued.parse().ok()))
    }

    /// Issues a directive to a worker.
    ///
    /// # Errors
    /// Redis is unavailable or full: it may have been issued nevertheless.
    pub async fn set_directive(&self, key: &WorkerKey, directive: Directive) -> StoreResult<IssuedDirective> {
        let issued = IssuedDirective { directive, issued_at: self.redis.now().await? };
        let mut call = script::SET_DIRECTIVE.key(keys::worker_directive(key));
        call.arg(issued.to_string()).arg(DIRECTIVE_TTL.as_millis().to_string());
        call.arg(self.redis.topics().notifications()).arg(Notification::DirectiveChanged(key.clone()).encode());
        let _: i64 = call.invoke_async(&mut self.redis.clone()).await?;
        Ok(issued)
    }

    /// The ids of all listed workers, in order.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn worker_keys(&self) -> StoreResult<Vec<WorkerKey>> {
        let mut command = redis::cmd("ZRANGEBYSCORE");
        command.arg(keys::WORKERS).arg(format!("({}", self.redis.now().await?)).arg("+inf");
        let names: Vec<String> = command.query_async(&mut self.redis.pooled_connection().await?).await?;
        let mut keys: Vec<WorkerKey> = names.into_iter().filter_map(|name| name.parse().ok()).collect();
        keys.sort_unstable();
        Ok(keys)
    }

    /// Whether a worker reported in time.
    async fn is_listed(&self, key: &WorkerKey) -> StoreResult<bool> {
        let mut command = redis::cmd("ZSCORE");
        command.arg(keys::WORKERS).arg(key.as_str());
        let expires_at: Option<f64> = command.query_async(&mut self.redis.clone()).await?;
        let now = self.redis.now().await?;
        Ok(expires_at.is_some_and(|at| score_to_millis(at) > now))
    }

    /// The last reports of workers that stopped reporting a short while ago, without having stopped in order.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn silent_workers(&self) -> StoreResult<Vec<ListedWorker>> {
        let (now, mut redis) = (self.redis.now().await?, self.redis.clone());
        let mut pipeline = redis::pipe();
        pipeline.cmd("ZRANGEBYSCORE").arg(keys::WORKERS).arg("-inf").arg(now);
        pipeline.cmd("ZRANGE").arg(keys::SILENT_WORKERS).arg(0).arg(-1);
        let (unnoticed, noticed): (Vec<String>, Vec<String>) = pipeline.query_async(&mut redis).await?;
        let mut keys: Vec<WorkerKey> = unnoticed.iter().chain(&noticed).filter_map(|name| name.parse().ok()).collect();
        keys.sort_unstable();
        keys.dedup();
        self.workers(&keys).await
    }

    /// The reports of these workers. Those no longer listed are left out.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn workers(&self, keys: &[WorkerKey]) -> StoreResult<Vec<ListedWorker>> {
        let mut connection = self.redis.pooled_connection().await?;
        let mut found = Vec::with_capacity(keys.len());
        for some in keys.chunks(READ_BATCH) {
            let mut pipeline = redis::pipe();
            for key in some {
                pipeline.cmd("GET").arg(keys::worker_report(key)).cmd("GET").arg(keys::worker_directive(key));
            }
            let texts: Vec<Option<String>> = pipeline.query_async(&mut connection).await?;
            for (key, texts) in some.iter().zip(texts.chunks_exact(2)) {
                let (record, issued) = (&texts[0], &texts[1]);
                if let Some(record) = record.as_deref().and_then(WorkerRecord::parse) {
                    let issued = issued.as_deref().and_then(|issued| issued.parse().ok());
                    found.push(ListedWorker { key: key.clone(), record, directive: issued });
                }
            }
        }
        Ok(found)
    }

    /// The worker with that id, otherwise with that name.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn find_worker(&self, id: &str) -> StoreResult<WorkerLookup> {
        if let Ok(key) = id.parse::<WorkerKey>()
            && self.is_listed(&key).await?
            && let Some(listed) = self.workers(&[key]).await?.pop()
        {
            return Ok(WorkerLookup::Found(Box::new(listed)));
        }
        // Programs that pull over HTTP have no name besides their id
        let keys: Vec<WorkerKey> = self.worker_keys().await?.into_iter().filter(|key| !key.is_pull()).collect();
        let mut named = self.workers(&keys).await?;
        named.retain(|listed| listed.record.name == id);
        Ok(match (named.len(), named.pop()) {
            (1, Some(listed)) => WorkerLookup::Found(Box::new(listed)),
            (0, _) => WorkerLookup::NotFound,
            (several, _) => WorkerLookup::Ambiguous(several),
        })
    }
}
