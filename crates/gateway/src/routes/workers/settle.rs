//! How several attempts ended, told in one request: each has an outcome of its own, and a bad one spoils no other. They
//! are recorded side by side: of two about the same job one counts, and the other is told so.

use futures_util::{StreamExt, stream};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::error::ApiError;

/// Attempts ended by one request.
pub(super) const MAX_SETTLED: usize = 100;
/// Of these, under way to Redis at once: their commands share round trips.
const MAX_CONCURRENT_SETTLES: usize = 32;

/// Items of an array; between one and as many as there may be.
pub(super) fn check_item_count(name: &str, items: &[&RawValue]) -> Result<(), ApiError> {
    if (1..=MAX_SETTLED).contains(&items.len()) {
        return Ok(());
    }
    Err(ApiError::invalid(format!("{name} must be an array of 1 to {MAX_SETTLED} items, got {}", items.len())))
}

/// One item: a JSON object, never an array that is read member by member.
pub(super) fn parse_item<'a, T: Deserialize<'a>>(raw: &'a RawValue) -> Result<T, ApiError> {
    if !raw.get().starts_with('{') {
        return Err(ApiError::invalid("an item must be a JSON object"));
    }
    serde_json::from_str(raw.get()).map_err(|error| ApiError::invalid(format!("the item has the wrong shape: {error}")))
}

/// Settles each item; the JSON array of what became of them, in their order.
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

/// The member `error` of an answer that has more to say.
pub(super) fn error_member(error: &ApiError) -> String {
    if let Some(cause) = error.cause() {
        tracing::error!(cause, "one of several parts of a request failed inside");
    }
    format!("\"error\":{}", error.to_json())
}
