//! Settles several attempts in one request. Each has its own outcome, and an invalid one does not affect the others.
//! They are recorded concurrently: of two about the same job one succeeds, and the other gets a conflict.

use common::{
    json::{JsonError, Object},
    telemetry::{
        WorkScope,
        spans::{ActiveSpan, Operation, SpanDescription},
    },
};
use futures_util::{StreamExt, stream};
use serde::Deserialize;
use serde_json::value::RawValue;
use store::jobs::ClaimedJob;

use crate::{body::JsonBody, error::ApiError};

/// The most attempts that one request settles.
pub(super) const MAX_SETTLED: usize = 100;
/// How many of these are sent to Redis at once: their commands share round trips.
const MAX_CONCURRENT_SETTLES: usize = 32;

/// Whether a body has several items, under this name, or is one.
pub(super) fn is_batch(body: &JsonBody, name: &str) -> Result<bool, ApiError> {
    Ok(body.parse::<Object>()?.get(name).is_some())
}

/// The items of an array, from one to the maximum.
pub(super) fn check_item_count(name: &str, items: &[&RawValue]) -> Result<(), ApiError> {
    if (1..=MAX_SETTLED).contains(&items.len()) {
        return Ok(());
    }
    Err(ApiError::invalid(format!("{name} must be an array of 1 to {MAX_SETTLED} items, got {}", items.len())))
}

/// One item: a JSON object, never an array.
pub(super) fn parse_item<'a, T: Deserialize<'a>>(raw: &'a RawValue) -> Result<T, ApiError> {
    if !raw.get().starts_with('{') {
        return Err(ApiError::invalid("an item must be a JSON object"));
    }
    // The depth of the whole body is checked before
    common::json_members::parse_request(raw.get().as_bytes(), usize::MAX).map_err(|error| match error {
        JsonError::Unexpected(problem) => ApiError::invalid(format!("the item has the wrong shape: {problem}")),
        other => other.into(),
    })
}

/// Settles each item and returns the JSON array of the outcomes, in the order of the items.
pub(super) async fn settle_each<'a, F: Future<Output = Result<String, ApiError>>>(
    items: &[&'a RawValue],
    settle: impl Fn(&'a RawValue) -> F,
) -> String {
    let results: Vec<String> = stream::iter(items)
        .map(|raw| settle(raw))
        .buffered(MAX_CONCURRENT_SETTLES)
        .map(|outcome| outcome.unwrap_or_else(|problem| format!("{{{}}}", error_member(&problem))))
        .collect()
        .await;
    format!("[{}]", results.join(","))
}

/// The member `error` of an answer that has other members too.
pub(super) fn error_member(error: &ApiError) -> String {
    if let Some(cause) = error.cause() {
        tracing::error!(cause, "one item of a request failed with an internal error");
    }
    format!("\"error\":{}", error.to_json())
}

/// The span of the end of a pulled attempt: in the request's span if the client continues the job's trace, else in that
/// trace with a link to the request.
pub(super) fn settle_span(claimed: &ClaimedJob) -> ActiveSpan {
    let (work, trace) = (WorkScope::current(), &claimed.job.trace);
    let (request, job) = (work.trace().span(), trace.span());
    let is_same =
        job.is_none() || request.is_some_and(|request| job.is_some_and(|job| job.trace_id == request.trace_id));
    let parent = if is_same { work.trace() } else { trace };
    ActiveSpan::start(parent, || describe(claimed).with_links(request.filter(|_| !is_same)))
}

pub(super) fn describe(claimed: &ClaimedJob) -> SpanDescription {
    SpanDescription::messaging(Operation::Settle, claimed.job.queue.as_str())
        .with_message_id(&claimed.job.id)
        .with("galley.job.type", claimed.job.summary.job_type.to_string())
        .with("galley.job.attempt", i64::from(claimed.job.history.current_attempt()))
}
