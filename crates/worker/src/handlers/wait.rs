//! Waiting in the middle of a job: for a time, for a signal, or for a person's approval. The attempt ends, no worker is held
//! meanwhile, and the next one goes on from here. What a wait brought is saved as the result of a step.

use std::time::Duration;

use common::name::SignalName;
use model::job::{JobSignal, JobWait, wait};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::value::{RawValue, to_raw_value};
use store::jobs::WaitRequest;

use super::{Context, HandlerError, saved_state::lock};

/// How the names of the steps begin that are waits.
const WAIT_STEP: &str = "galley:wait:";
/// The signal of an approval without a subject.
const APPROVAL: &str = "approval";

/// A signal that came for the job.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ReceivedSignal {
    /// Its number among the signals of the job, from 1.
    pub sequence: u64,
    /// What it is called.
    pub name: String,
    /// What tells it from others.
    pub id: String,
    /// When it came, as RFC 3339.
    pub sent_at: String,
    /// What it brought: JSON.
    pub data: Box<RawValue>,
}

impl ReceivedSignal {
    /// What it brought.
    ///
    /// # Errors
    /// It does not parse as `T`.
    pub fn data<T: DeserializeOwned>(&self) -> Result<T, HandlerError> {
        serde_json::from_str(self.data.get())
            .map_err(|error| HandlerError::not_retryable(format!("the data of signal {:?}: {error}", self.name)))
    }
}

/// What a person decided.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Approval {
    /// Whether it was approved.
    pub approved: bool,
    /// Who decided, if they said so.
    #[serde(default)]
    pub by: Option<String>,
    /// What they wrote.
    #[serde(default)]
    pub comment: Option<String>,
}

/// The result of a step that waited.
#[derive(Serialize, Deserialize)]
struct WaitResult {
    /// Absent when its time was over.
    signal: Option<ReceivedSignal>,
}

impl Context {
    /// Waits until somebody sends the job a signal of that name (`POST /ojs/v1/jobs/{id}/signals`), one that came before
    /// included; none if there is none until the timeout. While it waits, the job is `scheduled` and holds no worker: this
    /// call fails, pass the error on with `?`, and a later attempt gets here again. That costs no attempt of the retry
    /// policy. Everything before it must be a [`Context::step`], or do no harm when it runs again.
    ///
    /// # Errors
    /// The job waits; or the signal could not be saved.
    pub async fn wait_for_signal(
        &self,
        name: &str,
        timeout: Option<Duration>,
    ) -> Result<Option<ReceivedSignal>, HandlerError> {
        self.wait_for_signal_at(name, name, timeout).await
    }

    /// Like [`Context::wait_for_signal`], at a step with a name of its own: to wait for several signals of one name. Each
    /// is given once, in their order.
    ///
    /// # Errors
    /// As [`Context::wait_for_signal`].
    pub async fn wait_for_signal_at(
        &self,
        step: &str,
        name: &str,
        timeout: Option<Duration>,
    ) -> Result<Option<ReceivedSignal>, HandlerError> {
        let name = name.parse().map_err(|error| HandlerError::not_retryable(format!("signal: {error}")))?;
        self.wait_at(step, Some(name), timeout).await
    }

    /// Waits for a person who approves or rejects: `galley jobs approve`, the dashboard, or a signal `approval.<subject>` with
    /// `{"approved": true}`. The subject may be empty. None if nobody has decided until the timeout.
    ///
    /// # Errors
    /// As [`Context::wait_for_signal`], and the signal has other data.
    pub async fn wait_for_approval(
        &self,
        subject: &str,
        timeout: Option<Duration>,
    ) -> Result<Option<Approval>, HandlerError> {
        let name = if subject.is_empty() { APPROVAL.to_owned() } else { format!("{APPROVAL}.{subject}") };
        let signal = self.wait_for_signal(&name, timeout).await?;
        signal.map(|signal| signal.data()).transpose()
    }

    /// Sleeps for that long, counted from the first attempt that gets here, without holding a worker: see
    /// [`Context::wait_for_signal`]. Each sleep of a job needs a name of its own.
    ///
    /// # Errors
    /// The job sleeps.
    pub async fn sleep(&self, name: &str, duration: Duration) -> Result<(), HandlerError> {
        self.wait_at(name, None, Some(duration)).await.map(|_| ())
    }

    async fn wait_at(
        &self,
        step: &str,
        signal: Option<SignalName>,
        timeout: Option<Duration>,
    ) -> Result<Option<ReceivedSignal>, HandlerError> {
        if !wait::is_step_name(step) {
            let most = wait::MAX_STEP_BYTES;
            let message = format!("the name of a wait has 1 to {most} bytes without control characters, got {step:?}");
            return Err(HandlerError::not_retryable(message));
        }
        if timeout.is_some_and(|timeout| timeout.as_millis() > u128::from(wait::MAX_WAIT_MS)) {
            return Err(HandlerError::not_retryable(format!("a wait ends within {} ms", wait::MAX_WAIT_MS)));
        }
        let (saved, key) = (self.saved_state(), format!("{WAIT_STEP}{step}"));
        let parse = |result: &RawValue| serde_json::from_str::<WaitResult>(result.get());
        let mut received = Vec::new();
        for (name, result) in &saved.saved().members.steps {
            let Some(of) = name.strip_prefix(WAIT_STEP) else { continue };
            let result = parse(result).map_err(|error| {
                HandlerError::not_retryable(format!("the saved result of the wait {of:?}: {error}"))
            })?;
            if *name == key {
                return Ok(result.signal);
            }
            received.extend(result.signal.map(|signal| signal.sequence));
        }
        let claimed = self.claimed();
        let is_wanted = |came: &&JobSignal| Some(&came.name) == signal.as_ref() && !received.contains(&came.sequence);
        let found = claimed.signals.iter().find(is_wanted).map(received_signal).transpose()?;
        let is_this = |wait: &JobWait| wait.step == step && wait.is_over(self.started_at());
        if found.is_none() && !claimed.job.wait.as_deref().is_some_and(is_this) {
            let request = WaitRequest { step: step.to_owned(), signal, timeout, received };
            *lock(&saved.wait) = Some(request);
            return Err(HandlerError::waiting(step));
        }
        let result = to_raw_value(&WaitResult { signal: found.clone() })
            .map_err(|error| HandlerError::not_retryable(format!("the result of the wait {step:?}: {error}")))?;
        self.save_step(saved, &key, result).await?;
        Ok(found)
    }

    /// What the job waits for, if its handler asked for that.
    pub(crate) fn wait_request(&self) -> Option<WaitRequest> {
        self.saved().get().and_then(|saved| lock(&saved.wait).take())
    }
}

fn received_signal(came: &JobSignal) -> Result<ReceivedSignal, HandlerError> {
    serde_json::from_str(&came.to_json())
        .map_err(|error| HandlerError::not_retryable(format!("signal {}: {error}", came.sequence)))
}
