//! What each process of an installation is doing. A gateway asks all of them over pub/sub when an operator wants to know,
//! and each publishes one answer. Nothing is stored, and while nobody asks nothing is sent.

use std::time::{Duration, Instant};

use rand::random;
use serde_json::{Map, Value, json};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::{
    Redis, StoreResult,
    connection::notifier::{EventReceiver, Notifier, SubscriberEvent},
};
use common::{
    health::{ServiceHealth, overall_status, parts_json},
    prometheus,
    settings::hostname,
    telemetry::{log_level, recent_problems},
    time,
};

/// Questions that wait while one is answered. More are lost, and their askers hear from the others only.
const QUESTION_BUFFER: usize = 4;
/// How long a gateway waits for the answers; one that comes later is lost.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// Most answers to one question.
const MAX_ANSWERS: usize = 500;
/// Most warnings and errors in an answer.
const MAX_PROBLEMS: usize = 10;
/// The gauges that say what is open, by the names that they have in a report. A process has those of its service.
const CONNECTIONS: [(&str, &str); 9] = [
    ("http", "galley_http_connections"),
    ("event_streams", "galley_event_streams"),
    ("channel_readers", "galley_channel_readers"),
    ("channels_followed", "galley_channels_followed"),
    ("waiting_requests", "galley_waiters"),
    ("redis_pool_idle", "galley_redis_pool_connections{state=\"idle\"}"),
    ("redis_pool_used", "galley_redis_pool_connections{state=\"used\"}"),
    ("redis_pool_waiters", "galley_redis_pool_waiters"),
    ("open_files", "process_open_fds"),
];

/// Reports what this process is doing. Cheap to clone.
#[derive(Clone)]
pub struct ProcessReporter {
    service: &'static str,
    redis: Redis,
    health: ServiceHealth,
    /// Where everything but the handling of requests runs.
    runtime: Handle,
    started: Instant,
}

/// The answers of the processes of an installation.
#[derive(Debug)]
pub struct ProcessReports {
    /// How many processes were asked.
    pub asked: usize,
    /// What those say that answered in time.
    pub reports: Vec<Value>,
}

impl ProcessReporter {
    /// A reporter of a process that starts, on the runtime that it reports of.
    #[must_use]
    pub fn new(service: &'static str, redis: &Redis, health: &ServiceHealth) -> Self {
        let (redis, health) = (redis.clone(), health.clone());
        Self { service, redis, health, runtime: Handle::current(), started: Instant::now() }
    }

    /// How long this process has run.
    #[must_use]
    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// What this process is doing now. Without payloads and secrets.
    pub async fn report(&self) -> Value {
        let parts = self.health.parts().await;
        let metrics = prometheus::render().unwrap_or_default();
        let uptime = self.uptime();
        let started_at =
            i64::try_from(uptime.as_millis()).map_or(0, |millis| crate::local_now().saturating_sub(millis));
        json!({
            "service": self.service,
            "version": env!("CARGO_PKG_VERSION"),
            "host": hostname(),
            "process_id": std::process::id(),
            "started_at": time::format(started_at),
            "uptime_seconds": uptime.as_secs(),
            "is_leader": gauge(&metrics, "galley_leader") == Some(1.0),
            "health": { "status": overall_status(&parts), "parts": parts_json(&parts) },
            "tasks": self.tasks(),
            "connections": self.connections(&metrics),
            "log_level": { "in_effect": log_level::in_effect().0 },
            "last_problems": recent_problems(),
        })
    }

    /// Of the runtime.
    fn tasks(&self) -> Value {
        let metrics = self.runtime.metrics();
        let workers = metrics.num_workers();
        let busy: f64 = (0..workers).map(|worker| metrics.worker_total_busy_duration(worker).as_secs_f64()).sum();
        json!({
            "threads": workers, "alive": metrics.num_alive_tasks(), "queued": metrics.global_queue_depth(),
            "busy_seconds": (busy * 1000.0).round() / 1000.0,
        })
    }

    fn connections(&self, metrics: &str) -> Value {
        let known =
            CONNECTIONS.iter().filter_map(|(name, metric)| Some(((*name).to_owned(), json!(gauge(metrics, metric)?))));
        let mut shown: Map<String, Value> = known.collect();
        let shared = self.redis.shared_connection_state();
        let redis = json!({
            "is_open": shared.is_open, "opened": shared.opened,
            "open_seconds": shared.open_for.map(|time| time.as_secs()), "problem": shared.problem,
        });
        shown.insert("redis".to_owned(), redis);
        Value::Object(shown)
    }

    /// Answers questions to all processes, until `stop` is cancelled.
    pub async fn answer_questions(self, notifier: Notifier, stop: CancellationToken) {
        let (topics, mut events) = notifier.subscribe(QUESTION_BUFFER);
        topics.add(self.redis.topics().process_questions());
        while let Some(Some(event)) = stop.run_until_cancelled(events.recv()).await {
            if let SubscriberEvent::Message { payload, .. } = event
                && let Some(question) = Question::parse(&payload)
            {
                self.answer(question).await;
            }
        }
    }

    async fn answer(&self, question: Question) {
        let mut report = self.report().await;
        if let Some(problems) = report["last_problems"].as_array_mut() {
            problems.truncate(MAX_PROBLEMS);
        }
        let mut publish = redis::cmd("PUBLISH");
        publish.arg(self.redis.topics().process_answers(question.0)).arg(report.to_string());
        if let Err(error) = publish.exec_async(&mut self.redis.clone()).await {
            tracing::debug!(%error, "a report of this process was not sent");
        }
    }
}

/// The value of a gauge on a page of metrics.
fn gauge(metrics: &str, name: &str) -> Option<f64> {
    let text = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    text.parse().ok()
}

/// The number that tells the answers to one question from those to others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Question(u64);

impl Question {
    fn parse(payload: &[u8]) -> Option<Self> {
        std::str::from_utf8(payload).ok()?.parse().ok().map(Self)
    }
}

impl Redis {
    /// Asks every process of the installation what it is doing. One that hangs or has just lost its connection is missing.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn ask_processes(&self, notifier: &Notifier) -> StoreResult<ProcessReports> {
        let question = Question(random());
        let (topics, mut events) = notifier.subscribe(MAX_ANSWERS);
        topics.add(self.topics().process_answers(question.0));
        let mut answers = ProcessReports { asked: 0, reports: Vec::new() };
        let asking = async {
            wait_until_subscribed(&mut events).await;
            let mut publish = redis::cmd("PUBLISH");
            publish.arg(self.topics().process_questions()).arg(question.0);
            let asked: usize = publish.query_async(&mut self.clone()).await?;
            answers.asked = asked;
            while answers.reports.len() < asked.min(MAX_ANSWERS) {
                match events.recv().await {
                    Some(SubscriberEvent::Message { payload, .. }) => {
                        answers.reports.extend(serde_json::from_slice::<Value>(&payload));
                    }
                    Some(_) => {}
                    None => break,
                }
            }
            StoreResult::Ok(())
        };
        // After that time there are those that answered
        tokio::time::timeout(ANSWER_TIMEOUT, asking).await.unwrap_or(Ok(()))?;
        let text = |report: &Value, name: &str| report[name].as_str().unwrap_or_default().to_owned();
        answers.reports.sort_by_cached_key(|report| {
            (text(report, "service"), text(report, "host"), report["process_id"].as_u64())
        });
        Ok(answers)
    }
}

/// Waits until answers would arrive.
async fn wait_until_subscribed(events: &mut EventReceiver) {
    while let Some(event) = events.recv().await {
        if matches!(event, SubscriberEvent::Subscribed(_)) {
            return;
        }
    }
}
