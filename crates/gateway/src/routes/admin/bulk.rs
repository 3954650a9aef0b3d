//! Actions on all jobs that match a filter: counted first, bounded, and only when confirmed.

use actix_web::{http::StatusCode, web};
use common::{id::JobId, json_members::Members};
use futures_util::{StreamExt, stream};
use model::{
    access::Scope,
    job::{JobFilter, JobState},
};
use serde::Deserialize;
use serde_json::{Value, json};
use store::jobs::{EditRefusal, JobTransitionError};

use super::{ApiResult, filter::FilterRequest, job_actions::edit_refusal, jobs::parse_cursor, ojs_response};
use crate::{
    auth::Caller,
    body::JsonBody,
    error::{ApiError, ErrorCode},
    services::Services,
};

/// Jobs that one request acts on: the default, and the most.
const DEFAULT_LIMIT: usize = 1000;
const MAX_LIMIT: usize = 10_000;
/// Jobs that are acted on at the same time.
const CONCURRENCY: usize = 32;
/// Errors that an answer shows.
const MAX_ERRORS: usize = 100;
/// Searches for one request: each examines a bounded number of jobs.
const MAX_SEARCHES: usize = 20;

/// What to do with each job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BulkAction {
    Retry,
    Cancel,
    Delete,
}

impl BulkAction {
    fn as_str(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Cancel => "cancel",
            Self::Delete => "delete",
        }
    }

    /// The states in which it can be done.
    fn states(self) -> &'static [JobState] {
        use JobState::{Active, Available, Cancelled, Completed, Discarded, Pending, Retryable, Scheduled};
        match self {
            Self::Retry => &[Discarded, Cancelled, Retryable, Scheduled],
            Self::Cancel => &[Active, Pending, Scheduled, Retryable, Available],
            Self::Delete => &[Completed, Discarded, Cancelled],
        }
    }

    /// The states that are meant when a request names none.
    fn default_states(self) -> &'static [JobState] {
        match self {
            Self::Retry => &[JobState::Discarded],
            _ => self.states(),
        }
    }
}

/// A request about all jobs that match a filter.
#[derive(Deserialize)]
struct BulkRequest {
    filter: Option<Members<FilterRequest>>,
    #[serde(default)]
    confirm: bool,
    #[serde(default)]
    dry_run: bool,
    limit: Option<usize>,
    max_matched: Option<usize>,
    after: Option<String>,
}

pub(in crate::routes) async fn retry(caller: Caller, services: web::Data<Services>, body: JsonBody) -> ApiResult {
    run(&caller, &services, &body, BulkAction::Retry, false).await
}

pub(in crate::routes) async fn cancel(caller: Caller, services: web::Data<Services>, body: JsonBody) -> ApiResult {
    run(&caller, &services, &body, BulkAction::Cancel, false).await
}

pub(in crate::routes) async fn delete(caller: Caller, services: web::Data<Services>, body: JsonBody) -> ApiResult {
    run(&caller, &services, &body, BulkAction::Delete, false).await
}

/// Retries the dead letters that match.
pub(in crate::routes) async fn retry_dead_letters(
    caller: Caller,
    services: web::Data<Services>,
    body: JsonBody,
) -> ApiResult {
    run(&caller, &services, &body, BulkAction::Retry, true).await
}

async fn run(
    caller: &Caller,
    services: &Services,
    body: &JsonBody,
    action: BulkAction,
    is_dead_letter: bool,
) -> ApiResult {
    let BulkRequest { filter, confirm, dry_run, limit, max_matched, after } = body.parse()?;
    check_confirmed(confirm, dry_run)?;
    // Without a filter a request would be about everything: that has to be said
    let Some(Members(filter)) = filter else {
        return Err(ApiError::invalid("filter must be an object; {} means all jobs that the action can be for"));
    };
    let limit = limit.unwrap_or(DEFAULT_LIMIT);
    if !(1..=MAX_LIMIT).contains(&limit) {
        return Err(ApiError::invalid(format!("limit must be an integer from 1 to {MAX_LIMIT}")));
    }
    let after = parse_cursor(after.as_deref())?;
    let mut filter = filter.validate(caller, services, Scope::AdminWrite).await?;
    filter.is_dead_letter |= is_dead_letter;
    restrict_states(&mut filter, action)?;
    let matched = find(services, &filter, after, limit).await?;
    if let Some(most) = max_matched.filter(|most| matched.ids.len() > *most) {
        let message = format!("{} jobs match, more than max_matched ({most}): nothing was done", matched.ids.len());
        return Err(ApiError::new(ErrorCode::Conflict, message));
    }
    let outcome = if dry_run { BulkOutcome::default() } else { act(services, action, &matched.ids).await? };
    let answer = answer_json(action, &matched, &outcome, dry_run);
    Ok(ojs_response(StatusCode::OK, answer.to_string()))
}

/// Refuses a request about many jobs that is neither confirmed nor a dry run.
pub(super) fn check_confirmed(confirm: bool, dry_run: bool) -> Result<(), ApiError> {
    if confirm || dry_run {
        return Ok(());
    }
    let message = "this is about all jobs that match: confirm must be true, or dry_run";
    Err(ApiError::new(ErrorCode::ConfirmationRequired, message))
}

/// Only states in which the action can be done.
fn restrict_states(filter: &mut JobFilter, action: BulkAction) -> Result<(), ApiError> {
    if filter.states.is_empty() {
        filter.states = action.default_states().to_vec();
    }
    match filter.states.iter().find(|state| !action.states().contains(state)) {
        None => Ok(()),
        Some(state) => {
            let states: Vec<&str> = action.states().iter().map(|state| state.as_str()).collect();
            let message = format!("state must be one of {} for {}, got {state}", states.join(", "), action.as_str());
            Err(ApiError::invalid(message))
        }
    }
}

/// The jobs that match.
#[derive(Default)]
pub(super) struct Matched {
    pub(super) ids: Vec<JobId>,
    next: Option<String>,
    complete: bool,
    examined: usize,
}

/// Finds up to `limit` jobs.
pub(super) async fn find(
    services: &Services,
    filter: &JobFilter,
    mut after: Option<store::jobs::SearchCursor>,
    limit: usize,
) -> Result<Matched, ApiError> {
    let mut matched = Matched::default();
    for _ in 0..MAX_SEARCHES {
        let page = services.jobs.search_ids(filter, after.as_ref(), limit - matched.ids.len()).await?;
        matched.ids.extend(page.jobs.iter().map(|job| job.id));
        matched.examined += page.examined;
        matched.complete = page.complete;
        matched.next = page.cursor.as_ref().map(ToString::to_string);
        after = page.cursor;
        if after.is_none() || matched.ids.len() >= limit {
            break;
        }
    }
    Ok(matched)
}

/// What became of the jobs.
#[derive(Default)]
pub(super) struct BulkOutcome {
    pub(super) succeeded: usize,
    failed: usize,
    errors: Vec<Value>,
}

/// Acts on each job.
pub(super) async fn act(services: &Services, action: BulkAction, ids: &[JobId]) -> Result<BulkOutcome, ApiError> {
    let mut outcome = BulkOutcome::default();
    let results = stream::iter(ids.iter().copied()).map(|id| async move { (id, act_on(services, action, id).await) });
    let mut results = results.buffered(CONCURRENCY);
    while let Some((id, result)) = results.next().await {
        match result? {
            None => outcome.succeeded += 1,
            Some(refused) => {
                outcome.failed += 1;
                if outcome.errors.len() < MAX_ERRORS {
                    outcome.errors.push(json!({ "job_id": id, "error": refused }));
                }
            }
        }
    }
    Ok(outcome)
}

/// Acts on one job; why it was refused, if it was.
async fn act_on(services: &Services, action: BulkAction, id: JobId) -> Result<Option<String>, ApiError> {
    let refused = match action {
        BulkAction::Retry => services.jobs.retry_now(id).await?.err().map(transition_refusal),
        BulkAction::Cancel => services.jobs.cancel(id).await?.err().map(transition_refusal),
        BulkAction::Delete => {
            let refused = services.jobs.delete_ended(id).await?.err();
            refused.map(|refused| match refused {
                EditRefusal::NotFound => "the job is gone".to_owned(),
                other => edit_refusal(id, other, "deleted").to_string(),
            })
        }
    };
    Ok(refused)
}

fn transition_refusal(refused: JobTransitionError) -> String {
    match refused {
        JobTransitionError::NotFound => "the job is gone".to_owned(),
        JobTransitionError::Conflict(conflict) => conflict.to_string(),
        JobTransitionError::Duplicate(other) => format!("the equal job {other} is in the way"),
    }
}

fn answer_json(action: BulkAction, matched: &Matched, outcome: &BulkOutcome, dry_run: bool) -> Value {
    json!({
        "action": action.as_str(), "matched": matched.ids.len(), "succeeded": outcome.succeeded,
        "failed": outcome.failed, "errors": outcome.errors, "dry_run": dry_run,
        "complete": matched.complete, "examined": matched.examined, "next": matched.next,
    })
}

impl Matched {
    /// Whether more jobs may match.
    pub(super) fn has_more(&self) -> bool {
        self.next.is_some()
    }

    /// Where the next request continues.
    pub(super) fn next(&self) -> Option<&str> {
        self.next.as_deref()
    }
}
