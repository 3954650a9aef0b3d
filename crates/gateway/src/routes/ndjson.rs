//! Enqueues a stream of jobs, one on each line, and answers with a line for each in the same order.
//!
//! Every wait has a limit: for the next part of the body, for a client to read, and when the gateway stops. If the
//! stream ends early, a last line says why, if the client reads it.

use std::{sync::Arc, time::Duration};

use actix_web::{
    HttpMessage, HttpRequest, HttpResponse,
    http::header,
    web::{self, Bytes, BytesMut},
};
use common::{json, trace_context::TraceContext};
use futures_util::{StreamExt, stream};
use serde_json::{json, value::RawValue};
use tokio::{sync::mpsc, task::coop, time::Instant};

use super::{
    ApiResult,
    batch::{BatchItem, CHUNK_SIZE, enqueue_items},
};
use crate::{
    auth::{Caller, Credentials, StreamSession},
    context::RequestTrace,
    error::{ApiError, ErrorCode},
    key_usage::KeyMeter,
    services::Services,
};

const NDJSON_MEDIA_TYPE: &str = "application/x-ndjson";
/// The most answers that wait to be read. Each is for the jobs of one step.
const RESPONSE_BUFFER: usize = 4;
/// How long a client has to read the rest of the answer when the gateway stops.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// Enqueues a job for each line of the body.
pub(super) async fn enqueue(
    caller: Caller,
    request: HttpRequest,
    services: web::Data<Services>,
    payload: web::Payload,
) -> ApiResult {
    let given = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if !given.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case(NDJSON_MEDIA_TYPE) {
        return Err(ApiError::new(
            ErrorCode::UnsupportedMediaType,
            format!("Content-Type must be {NDJSON_MEDIA_TYPE}"),
        ));
    }
    let (answers, unread) = mpsc::channel::<Bytes>(RESPONSE_BUFFER);
    let session = StreamSession::open(&request)?;
    // The length of others was counted before
    let counts = !request.headers().contains_key(header::CONTENT_LENGTH);
    let meter = request.extensions().get::<Credentials>().and_then(|known| known.meter.clone()).filter(|_| counts);
    let lines =
        NdjsonEnqueuer { caller, services, trace: RequestTrace::from_request(&request), meter, responses: answers };
    // Answers begin before the body ends, so this task outlives the handler
    actix_web::rt::spawn(lines.run(payload, session));
    let body = stream::unfold(unread, |mut unread| async {
        let answer = unread.recv().await?;
        Some((Ok::<Bytes, actix_web::Error>(answer), unread))
    });
    Ok(HttpResponse::Ok()
        .content_type(NDJSON_MEDIA_TYPE)
        // Answers are streamed: nothing between may hold them back
        .insert_header((header::CACHE_CONTROL, "no-transform"))
        .insert_header(("X-Accel-Buffering", "no"))
        .streaming(body))
}

/// The client no longer reads the answers.
struct ClientNotReading;

struct NdjsonEnqueuer {
    caller: Caller,
    services: web::Data<Services>,
    trace: TraceContext,
    /// Counts the bytes of the body, if they are limited.
    meter: Option<Arc<KeyMeter>>,
    responses: mpsc::Sender<Bytes>,
}

impl NdjsonEnqueuer {
    async fn run(self, payload: web::Payload, session: StreamSession) {
        if let Ok(Some(problem)) = self.process_body(payload, session).await {
            let _ = self.send(format!("{}\n", json!({ "error": problem.to_json() }))).await;
        }
    }

    /// Answers lines until the body ends. Returns an error if something else ended it.
    async fn process_body(
        &self,
        mut payload: web::Payload,
        mut session: StreamSession,
    ) -> Result<Option<ApiError>, ClientNotReading> {
        let gateway = &self.services.settings.gateway;
        let broken = |problem: &str| {
            let message = format!("{problem}; an incomplete last line was not read");
            Ok(Some(ApiError::new(ErrorCode::InvalidPayload, message)))
        };
        let mut rest = BytesMut::new();
        let mut lease = self.services.bodies.lease();
        // For each line: a body may take any time, but what comes must be complete some time
        let mut line_deadline = Instant::now() + gateway.body_timeout;
        loop {
            // A body that always has data must not starve other requests
            coop::consume_budget().await;
            let next = tokio::select! {
                biased;
                () = self.services.stopping.cancelled() => {
                    let message = "the gateway stops; an incomplete last line was not read";
                    return Ok(Some(ApiError::new(ErrorCode::BackendUnavailable, message)));
                }
                why = session.ended() => {
                    let message = format!("{}; an incomplete last line was not read", why.message());
                    return Ok(Some(ApiError::new(ErrorCode::InvalidKey, message)));
                }
                next = tokio::time::timeout_at(line_deadline, payload.next()) => next,
            };
            match next {
                Ok(Some(Ok(chunk))) => {
                    if let Some(meter) = &self.meter
                        && let Err(error) = meter.count_body(&self.services.redis, chunk.len() as u64).await
                    {
                        return Ok(Some(error));
                    }
                    if let Err(error) = lease.resize(rest.len() + chunk.len()) {
                        return Ok(Some(error));
                    }
                    let lines = take_complete_lines(&mut rest, &chunk);
                    if !lines.is_empty() {
                        self.enqueue_lines(&lines).await?;
                        line_deadline = Instant::now() + gateway.body_timeout;
                    }
                }
                Ok(None) => {
                    self.enqueue_lines(&rest).await?;
                    return Ok(None);
                }
                Ok(Some(Err(_))) => return broken("the body broke off"),
                Err(_) => return broken("a line took too long to arrive"),
            }
            let limit = gateway.body_limit_bytes;
            if rest.len() > limit {
                let message = format!("a line must have at most {limit} bytes");
                return Ok(Some(ApiError::new(ErrorCode::InvalidPayload, message)));
            }
        }
    }

    /// Stores the job of each line.
    async fn enqueue_lines(&self, lines: &[u8]) -> Result<(), ClientNotReading> {
        let depth = self.services.settings.gateway.json_depth_limit;
        let lines = lines.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty());
        let wanted: Vec<BatchItem> =
            lines.map(|line| (json::parse::<&RawValue>(line, depth).map_err(ApiError::from), None)).collect();
        for some in wanted.chunks(CHUNK_SIZE) {
            let mark = self.services.confirmer.mark();
            let mut lines = enqueue_items(&self.caller, &self.services, some, self.trace.clone()).await.lines;
            if !self.services.confirmer.confirm(mark).await {
                lines.iter_mut().for_each(mark_unconfirmed);
            }
            let mut text = json::escape_line_ends(&lines.join("\n")).into_owned();
            text.push('\n');
            self.send(text).await?;
        }
        Ok(())
    }

    /// Waits a limited time for the client to read.
    async fn send(&self, text: String) -> Result<(), ClientNotReading> {
        let too_late = async {
            tokio::select! {
                () = tokio::time::sleep(self.services.settings.gateway.body_timeout) => {}
                () = async {
                    self.services.stopping.cancelled().await;
                    tokio::time::sleep(DRAIN_TIMEOUT).await;
                } => {}
            }
        };
        tokio::select! {
            biased;
            sent = self.responses.send(text.into()) => sent.map_err(|_| ClientNotReading),
            () = too_late => Err(ClientNotReading),
        }
    }
}

/// Says in the line of a job that it has not reached in time what `durability` asks for.
fn mark_unconfirmed(line: &mut String) {
    if line.starts_with("{\"job\"") && line.ends_with('}') {
        line.pop();
        line.push_str(",\"unconfirmed\":true}");
    }
}

/// Takes the complete lines. The rest was searched and is not searched again.
fn take_complete_lines(rest: &mut BytesMut, chunk: &[u8]) -> BytesMut {
    let complete = chunk.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| rest.len() + end + 1);
    rest.extend_from_slice(chunk);
    rest.split_to(complete)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_taken_when_they_are_complete_however_they_are_cut() {
        let text = b"one\n\ntwo\nthr";
        for size in 1..=text.len() {
            let (mut rest, mut taken) = (BytesMut::new(), Vec::new());
            for chunk in text.chunks(size) {
                let whole = take_complete_lines(&mut rest, chunk);
                assert!(whole.is_empty() || whole.ends_with(b"\n"), "chunks of {size}");
                taken.extend_from_slice(&whole);
            }
            assert_eq!((&taken[..], &rest[..]), (&b"one\n\ntwo\n"[..], &b"thr"[..]), "chunks of {size}");
        }
    }
}
