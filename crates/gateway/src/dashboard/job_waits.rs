//! What the page of a job shows of its waits: what it waits for, the signals that came, what it saved and what it streamed.

use common::{id::JobId, name::QueueName, time};
use model::job::wait::is_approval;
use store::jobs::{LocatedJob, OutputPosition};

use super::shown_value::ShownValue;
use crate::{error::ApiError, services::Services};

/// Chunks of an output that are read for a page, from its begin.
const MAX_CHUNKS: usize = 500;
/// Signals that are shown, the newest.
const MAX_SIGNALS: usize = 20;

/// What a job waits for.
pub(super) struct WaitSheet {
    pub(super) step: String,
    pub(super) signal: String,
    pub(super) since: String,
    pub(super) until: String,
    /// Whether a person decides.
    pub(super) is_approval: bool,
}

/// A signal that came.
pub(super) struct SignalRow {
    pub(super) name: String,
    pub(super) at: String,
    pub(super) data: ShownValue,
}

/// All of it. A job that never waited, saved and streamed has nothing.
#[derive(Default)]
pub(super) struct JobWaits {
    pub(super) waiting: Option<WaitSheet>,
    /// The newest first.
    pub(super) signals: Vec<SignalRow>,
    pub(super) checkpoint: Option<ShownValue>,
    pub(super) output: Option<ShownValue>,
}

impl JobWaits {
    pub(super) async fn read(
        services: &Services,
        located: &LocatedJob,
        queue: &QueueName,
        id: JobId,
    ) -> Result<Self, ApiError> {
        let waiting = located.wait().map(|wait| WaitSheet {
            step: wait.step.clone(),
            signal: wait.signal.as_ref().map(ToString::to_string).unwrap_or_default(),
            since: time::format(wait.since),
            until: wait.until.map(time::format).unwrap_or_default(),
            is_approval: wait.signal.as_ref().is_some_and(|signal| is_approval(signal.as_str())),
        });
        let (signals, checkpoint, chunks) = tokio::try_join!(
            services.jobs.read_signals(queue, id),
            services.jobs.read_checkpoint(queue, id),
            services.jobs.read_output(queue, id, OutputPosition::START, MAX_CHUNKS),
        )?;
        let signals = signals.into_iter().rev().take(MAX_SIGNALS).map(|signal| SignalRow {
            name: signal.name.to_string(),
            at: time::format(signal.sent_at),
            data: ShownValue::of_json(&signal.data),
        });
        let mut output = String::new();
        for chunk in chunks {
            match serde_json::from_str::<String>(&chunk.json) {
                Ok(text) => output.push_str(&text),
                Err(_) => output.extend([chunk.json.as_str(), "\n"]),
            }
            // More than is shown
            if output.len() > ShownValue::MAX_BYTES {
                break;
            }
        }
        Ok(Self {
            waiting,
            signals: signals.collect(),
            checkpoint: checkpoint.map(|checkpoint| ShownValue::of_json(&checkpoint.state)),
            output: Some(output).filter(|output| !output.is_empty()).map(ShownValue::of_text),
        })
    }
}
