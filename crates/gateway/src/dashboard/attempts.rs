//! The log of deliveries on a page: the newest attempts of a subscription or of a rule, with what was answered.

use askama::Template;
use serde::Deserialize;
use store::deliveries::{DeliveryId, DeliveryOutcome, DeliveryOwner};

use super::page::Page;
use crate::{error::ApiError, services::Services};

/// Attempts on a page.
const PAGE_SIZE: usize = 25;

/// A table of attempts.
#[derive(Template)]
#[template(path = "attempts.html")]
pub(super) struct AttemptsTable<'p> {
    page: &'p Page,
    rows: Vec<AttemptRow>,
    /// The page that it stands on.
    path: String,
    /// Which are shown: all if empty.
    outcome: String,
    /// Where the next page begins.
    next: Option<String>,
    is_first: bool,
    may_resend: bool,
}

struct AttemptRow {
    id: String,
    seen: SeenAttempt,
}

/// An attempt as it is logged.
#[derive(Deserialize, Default)]
#[serde(default)]
struct SeenAttempt {
    at: String,
    outcome: String,
    attempt: u32,
    duration_ms: i64,
    channel: String,
    message_id: String,
    job_id: String,
    status: Option<u16>,
    response: String,
    error: Option<LoggedError>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct LoggedError {
    code: String,
    message: String,
}

/// What a request asks for.
pub(super) struct AttemptsTableQuery<'q> {
    pub(super) owner: DeliveryOwner,
    /// The page that the table stands on.
    pub(super) path: String,
    pub(super) outcome: &'q str,
    pub(super) before: &'q str,
    pub(super) may_resend: bool,
}

impl AttemptsTable<'_> {
    fn link(&self, outcome: &str) -> String {
        if outcome.is_empty() {
            format!("{}#attempts", self.path)
        } else {
            format!("{}?outcome={outcome}#attempts", self.path)
        }
    }

    fn next_link(&self) -> Option<String> {
        let next = self.next.as_ref()?;
        Some(format!("{}?outcome={}&before={next}#attempts", self.path, self.outcome))
    }
}

/// The table as HTML.
pub(super) async fn table(page: &Page, services: &Services, query: AttemptsTableQuery<'_>) -> Result<String, ApiError> {
    let outcome = DeliveryOutcome::ALL.into_iter().find(|outcome| outcome.as_str() == query.outcome);
    let outcomes = outcome.map_or_else(|| DeliveryOutcome::ALL.to_vec(), |outcome| vec![outcome]);
    let before: Option<DeliveryId> = query.before.parse().ok();
    let found = services.redis.read_deliveries(&query.owner, &outcomes, before, PAGE_SIZE).await?;
    let next = found.last().filter(|_| found.len() == PAGE_SIZE).map(|(id, _)| id.to_string());
    let rows = found
        .iter()
        .map(|(id, json)| AttemptRow { id: id.to_string(), seen: serde_json::from_str(json).unwrap_or_default() });
    let table = AttemptsTable {
        page,
        rows: rows.collect(),
        path: query.path,
        outcome: outcome.map(|outcome| outcome.as_str().to_owned()).unwrap_or_default(),
        next,
        is_first: before.is_none(),
        may_resend: query.may_resend,
    };
    table.render().map_err(ApiError::internal)
}
