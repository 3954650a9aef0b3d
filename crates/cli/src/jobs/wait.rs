//! `galley jobs wait`: the gateway answers when the job ends; its events move the progress bar meanwhile.

use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use super::{job_path, print_job};
use crate::{
    event_stream::EventStream,
    failure::{CliError, CliResult},
    gateway_client::{GatewayAnswer, PathWithQuery},
    session::Session,
    table::{member, shown},
};

/// How long one request waits. A gateway allows a minute by default.
const MAX_WAIT: Duration = Duration::from_secs(20);
const TICK: Duration = Duration::from_millis(100);

#[derive(Debug, Args)]
pub(crate) struct WaitArgs {
    id: String,
    /// Give up after this number of seconds, with exit code 1. The job goes on.
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
}

impl WaitArgs {
    pub(crate) async fn run(self, session: &Session) -> CliResult {
        wait_for(session, &self.id, self.timeout).await
    }
}

/// Waits for a job, prints it, and fails if it did not complete.
pub(crate) async fn wait_for(session: &Session, id: &str, timeout: Option<u64>) -> CliResult {
    let bar = progress_bar(session, id);
    let answer = tokio::select! {
        answer = ended(session, id, timeout) => answer,
        () = follow(session, id, &bar) => unreachable!("following never ends"),
    };
    bar.finish_and_clear();
    let answer = answer?;
    let job = answer.value()?["job"].clone();
    print_job(session, &answer)?;
    match job["state"].as_str() {
        Some("completed") => Ok(()),
        Some("discarded" | "cancelled") => Err(CliError::failed(format!("job {id} is {}", member(&job, "state")))),
        _ => Err(CliError::failed(format!("job {id} has not ended: it is {}", member(&job, "state")))),
    }
}

fn progress_bar(session: &Session, id: &str) -> ProgressBar {
    if !session.terminal.has_progress() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(100);
    if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed:>4} [{bar:30}] {percent:>3} % {wide_msg}") {
        bar.set_style(style);
    }
    bar.set_message(shown(&Value::from(id)));
    bar.enable_steady_tick(TICK);
    bar
}

/// The job when it has ended, or when the time is over.
pub(super) async fn ended(session: &Session, id: &str, timeout: Option<u64>) -> CliResult<GatewayAnswer> {
    let deadline = timeout.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    loop {
        let left = deadline.map_or(MAX_WAIT, |deadline| deadline.saturating_duration_since(Instant::now()));
        let wait = left.min(MAX_WAIT);
        let path = PathWithQuery::new(job_path(id)).with("wait_ms", Some(wait.as_millis()));
        let answer = session.gateway.send(path.into_call().waiting(wait)).await?;
        let state = answer.value()?["job"]["state"].clone();
        let has_ended = matches!(state.as_str(), Some("completed" | "discarded" | "cancelled"));
        if has_ended || deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            return Ok(answer);
        }
    }
}

/// Moves the bar. Never ends: whether the job has ended is not for events to say, of which some may be missing.
async fn follow(session: &Session, id: &str, bar: &ProgressBar) {
    if !bar.is_hidden() {
        let mut events = EventStream::new(format!("{}/events", job_path(id))).silent();
        while let Ok(event) = events.next(session).await {
            let data: Value = serde_json::from_str(&event.data).unwrap_or_default();
            let data = data.get("data").unwrap_or(&data);
            if let Some(progress) = data["progress"].as_f64() {
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 100")]
                bar.set_position((progress.clamp(0.0, 1.0) * 100.0) as u64);
            }
            let text = ["message", "state"].iter().find_map(|name| {
                data[*name]
                    .as_str()
                    .or_else(|| data["progress_data"][*name].as_str())
                    .or_else(|| data["data"][*name].as_str())
            });
            let text = text.map_or_else(|| event.name.clone(), str::to_owned);
            bar.set_message(shown(&Value::from(text)));
        }
    }
    std::future::pending::<()>().await;
}
