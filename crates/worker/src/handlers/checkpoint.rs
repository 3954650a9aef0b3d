//! What an attempt saves for the next one, by its context.

use std::time::Duration;

use serde::{Serialize, de::DeserializeOwned};
use serde_json::value::{RawValue, to_raw_value};
use store::jobs::{Attempt, CheckpointOutcome, MAX_CHECKPOINT_BYTES};

use super::{
    Context, ContextError, HandlerError,
    saved_state::{Saved, SavedState},
};

/// How often the result of a step is offered to Redis while it does not answer.
const MAX_STEP_SAVES: u32 = 10;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(2);

impl Context {
    pub(super) fn saved_state(&self) -> &SavedState {
        self.saved().get_or_init(|| {
            let checkpoint = self.claimed().checkpoint.as_ref();
            let saved = checkpoint.map(|checkpoint| Saved::parse(checkpoint.sequence, &checkpoint.state));
            Box::new(SavedState::new(saved.unwrap_or_default()))
        })
    }

    /// Saves from where the next attempt goes on, if there is one: it reads it with [`Context::state`]. Each call replaces
    /// what the one before saved. With the results of the job's steps it may have 1,048,576 bytes as JSON. It is deleted
    /// when the job completes.
    ///
    /// # Errors
    /// It was not saved: [`ContextError::Stale`] if the attempt was replaced, [`ContextError::Unavailable`] if Redis does
    /// not answer or is full, [`ContextError::Invalid`] if it is too large.
    pub async fn checkpoint(&self, state: &impl Serialize) -> Result<(), ContextError> {
        let state = to_raw_value(state).map_err(|error| ContextError::Invalid(format!("checkpoint: {error}")))?;
        let saved = self.saved_state();
        let _saving = saved.saving.acquire().await.ok();
        let mut next = saved.saved().clone();
        next.members.state = Some(state);
        self.save(saved, next).await
    }

    /// What [`Context::checkpoint`] saved last, in this attempt or an earlier one; none if nothing was saved.
    ///
    /// # Errors
    /// It does not parse as `T`.
    pub fn state<T: DeserializeOwned>(&self) -> Result<Option<T>, HandlerError> {
        let state = self.saved_state().saved().members.state.clone();
        let parse = |state: Box<RawValue>| {
            serde_json::from_str(state.get())
                .map_err(|error| HandlerError::not_retryable(format!("the checkpoint of an earlier attempt: {error}")))
        };
        state.filter(|state| state.get() != "null").map(parse).transpose()
    }

    /// Runs a step of the job and saves its result; an attempt that comes later gets the saved result, and `run` is not
    /// called. Each step of a job needs a name of its own. If the worker dies after the step and before its result is saved,
    /// the step runs again: make its effect idempotent with [`Context::id`] and the name.
    ///
    /// # Errors
    /// The step failed, or its result could not be saved.
    pub async fn step<T, F, R>(&self, name: &str, run: F) -> Result<T, HandlerError>
    where
        T: Serialize + DeserializeOwned,
        F: FnOnce() -> R,
        R: Future<Output = Result<T, HandlerError>>,
    {
        let saved = self.saved_state();
        if let Some(result) = saved.saved().members.steps.get(name).cloned() {
            return serde_json::from_str(result.get())
                .map_err(|error| HandlerError::not_retryable(format!("the saved result of step {name:?}: {error}")));
        }
        let Some(_running) = saved.start_step(name) else {
            let message = format!("step {name:?} runs already: give each step a name of its own");
            return Err(HandlerError::not_retryable(message));
        };
        let result = run().await?;
        let json = to_raw_value(&result)
            .map_err(|error| HandlerError::not_retryable(format!("the result of step {name:?}: {error}")))?;
        self.save_step(saved, name, json).await?;
        Ok(result)
    }

    /// Saves the result of a step until Redis has it: without it the step would run again.
    pub(super) async fn save_step(
        &self,
        saved: &SavedState,
        name: &str,
        result: Box<RawValue>,
    ) -> Result<(), HandlerError> {
        let _saving = saved.saving.acquire().await.ok();
        let mut pause = FIRST_PAUSE;
        for tries in 1.. {
            let mut next = saved.saved().clone();
            next.members.steps.insert(name.to_owned(), result.clone());
            match self.save(saved, next).await {
                Ok(()) => break,
                Err(ContextError::Unavailable(_)) if tries < MAX_STEP_SAVES => tokio::time::sleep(pause).await,
                Err(error @ ContextError::Invalid(_)) => return Err(HandlerError::not_retryable(error)),
                Err(error) => return Err(error.into()),
            }
            pause = (pause * 2).min(MAX_PAUSE);
        }
        Ok(())
    }

    async fn save(&self, saved: &SavedState, mut next: Saved) -> Result<(), ContextError> {
        let json = next.to_json().map_err(|error| ContextError::Invalid(format!("checkpoint: {error}")))?;
        if json.len() > MAX_CHECKPOINT_BYTES {
            let message = format!("a checkpoint must have at most {MAX_CHECKPOINT_BYTES} bytes, got {}", json.len());
            return Err(ContextError::Invalid(message));
        }
        // Before the call: it may be saved although the answer is lost
        self.claimed().mark_checkpoint();
        let (fence, sequence) = (self.fence(), next.sequence + 1);
        let attempt = Attempt::of(self.claimed(), &fence);
        match self.jobs().save_checkpoint(attempt, Some(sequence), &json).await? {
            CheckpointOutcome::Saved { sequence, .. } => {
                next.sequence = sequence;
                *saved.saved() = next;
                Ok(())
            }
            CheckpointOutcome::Stale => Err(ContextError::Stale),
            CheckpointOutcome::Superseded(newer) => {
                Err(ContextError::Invalid(format!("another program saved checkpoint {newer} meanwhile")))
            }
        }
    }
}
