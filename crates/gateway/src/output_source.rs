//! The output of a job for a stream of Server-Sent Events: what is kept of it, then what follows, until the job ends.

use std::{fmt::Write, pin::pin, time::Duration};

use common::json::ObjectWriter;
use model::job::JobState;
use store::jobs::{Jobs, OutputChunk, OutputPosition};
use tokio_util::sync::CancellationToken;

use crate::{
    job_event_source::shutdown_frame,
    job_waiters::JobWaiter,
    sse::{self, AwaitedSse, SseFrames},
};

/// The id of the end: a browser that reconnects behind it has seen everything.
pub(crate) const END: &str = "end";
/// Chunks that are read at once.
const PAGE_CHUNKS: usize = 64;
/// How often the job is looked at, because a notification can be lost.
const RECHECK_INTERVAL: Duration = Duration::from_secs(10);
/// The same after Redis did not answer.
const REDIS_RETRY_DELAY: Duration = Duration::from_secs(1);

/// The output of a job behind a place.
pub(crate) struct OutputSource {
    jobs: Jobs,
    waiter: JobWaiter,
    after: OutputPosition,
    attempt: String,
    /// How the job ended, once that is known: nothing is written any more.
    end: Option<OutputEnd>,
    stopping: CancellationToken,
    shutdown_grace: Duration,
}

#[derive(Clone, Copy)]
enum OutputEnd {
    InState(JobState),
    Forgotten,
}

impl OutputSource {
    pub(crate) fn new(
        jobs: Jobs,
        waiter: JobWaiter,
        after: OutputPosition,
        (stopping, shutdown_grace): (CancellationToken, Duration),
    ) -> Self {
        Self { jobs, waiter, after, attempt: String::new(), end: None, stopping, shutdown_grace }
    }

    /// Looks whether the job has ended; false if Redis does not answer.
    async fn look_for_end(&mut self) -> bool {
        let Ok(located) = self.jobs.locate(self.waiter.id).await else { return false };
        self.end = match located.map(|located| located.state()) {
            None => Some(OutputEnd::Forgotten),
            Some(state) if state.is_terminal() => Some(OutputEnd::InState(state)),
            Some(_) => None,
        };
        true
    }

    fn encode(&mut self, chunks: &[OutputChunk]) -> SseFrames {
        let mut frames = String::new();
        for chunk in chunks {
            if !self.after.is_followed_by(chunk.position) {
                sse::push_event(&mut frames, None, "gap", &gap_data(self.after));
            }
            // Also when a client continues: it cannot know whether this is still the attempt that it saw
            if self.attempt != chunk.attempt {
                self.attempt.clone_from(&chunk.attempt);
                let data = format!("{{\"attempt\":{}}}", chunk.attempt_number());
                sse::push_event(&mut frames, None, "attempt", &data);
            }
            let mut data = String::with_capacity(chunk.json.len() + 32);
            let _ = write!(data, "{{\"attempt\":{},\"chunk\":{}}}", chunk.attempt_number(), chunk.json);
            sse::push_event(&mut frames, Some(&chunk.position), "chunk", &data);
            self.after = chunk.position;
        }
        SseFrames::More(frames.into())
    }
}

impl AwaitedSse for OutputSource {
    fn first_id(&self) -> String {
        self.after.to_string()
    }

    async fn next(&mut self) -> SseFrames {
        let (ended, streamed) = self.waiter.notifies();
        let mut must_look = true;
        loop {
            let (mut ended, mut streamed) = (pin!(ended.notified()), pin!(streamed.notified()));
            // From here on no notification is missed
            ended.as_mut().enable();
            streamed.as_mut().enable();
            // The end first: behind it nothing is written, so what is read then is all
            let is_known = !must_look || self.end.is_some() || self.look_for_end().await;
            let read = self.jobs.read_output(&self.waiter.queue, self.waiter.id, self.after, PAGE_CHUNKS).await;
            let pause = match read {
                Ok(chunks) if !chunks.is_empty() => return self.encode(&chunks),
                Ok(_) if is_known => match self.end {
                    Some(end) => return SseFrames::Last(end_frame(end).into()),
                    None => RECHECK_INTERVAL,
                },
                Ok(_) => REDIS_RETRY_DELAY,
                Err(error) => {
                    tracing::debug!(%error, id = %self.waiter.id, "output of a job not read");
                    REDIS_RETRY_DELAY
                }
            };
            must_look = tokio::select! {
                biased;
                () = self.stopping.cancelled() => {
                    return SseFrames::Last(shutdown_frame(self.shutdown_grace).into());
                }
                () = ended => true,
                () = streamed => !is_known,
                () = tokio::time::sleep(pause) => true,
            };
        }
    }
}

/// Its id tells a browser that reconnects behind the end from one that has not seen the end.
fn end_frame(end: OutputEnd) -> String {
    let mut data = ObjectWriter::default();
    match end {
        OutputEnd::InState(state) => data.text("state", state.as_str()),
        OutputEnd::Forgotten => data.text("state", "forgotten"),
    };
    let mut frame = String::new();
    sse::push_event(&mut frame, Some(&END), "end", &data.finish());
    frame
}

fn gap_data(after: OutputPosition) -> String {
    let mut data = ObjectWriter::default();
    data.text("after", &after.to_string());
    data.text("message", "chunks after this position are missing: they are not kept any more");
    data.finish()
}
