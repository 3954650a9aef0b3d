//! The consistency check: `GET` reports violations, `POST` also repairs them. A request checks a bounded number of
//! things for a bounded time; `cursor` continues where it ended.

use std::time::{Duration, Instant};

use actix_web::{http::StatusCode, web};
use model::access::Scope;
use serde::Deserialize;
use serde_json::{Value, json};
use store::maintenance::{CheckCursor, Violation};

use super::{ApiResult, ojs_response, queues::known_queue};
use crate::{auth::Caller, body::JsonBody, error::ApiError, services::Services};

/// How long a request begins further slices.
const MAX_CHECK_TIME: Duration = Duration::from_secs(2);
/// The most things checked in one slice.
const SLICE_SIZE: usize = 500;
/// The most violations in one answer. The slice that exceeds it is the last.
const MAX_VIOLATIONS: usize = 1000;

#[derive(Deserialize)]
pub(super) struct ConsistencyCheckQuery {
    queue: Option<String>,
    cursor: Option<String>,
}

#[derive(Deserialize)]
struct ConsistencyRepairRequest {
    queue: Option<String>,
    cursor: Option<String>,
    repair: Option<bool>,
}

/// Reports violations and changes nothing.
pub(super) async fn report(
    caller: Caller,
    services: web::Data<Services>,
    query: web::Query<ConsistencyCheckQuery>,
) -> ApiResult {
    run_check(&caller, &services, query.queue.as_deref(), query.cursor.as_deref(), false).await
}

/// Repairs what it can, if the body asks for it.
pub(super) async fn repair(caller: Caller, services: web::Data<Services>, body: JsonBody) -> ApiResult {
    let wanted: ConsistencyRepairRequest = body.parse()?;
    let is_repair = wanted.repair.unwrap_or(false);
    run_check(&caller, &services, wanted.queue.as_deref(), wanted.cursor.as_deref(), is_repair).await
}

async fn run_check(
    caller: &Caller,
    services: &Services,
    queue: Option<&str>,
    cursor: Option<&str>,
    repair: bool,
) -> ApiResult {
    let queue = queue.ok_or_else(|| ApiError::invalid("queue is required: the name of a queue"))?;
    let start = cursor.map_or(Ok(CheckCursor::start()), str::parse);
    let mut next =
        Some(start.map_err(|error: store::maintenance::CheckCursorError| ApiError::invalid(error.to_string()))?);
    caller.check_queue(if repair { Scope::AdminWrite } else { Scope::AdminRead }, &queue.parse()?)?;
    let queue = known_queue(caller, services, queue).await?;
    let (began, mut violations, mut looked_at) = (Instant::now(), Vec::new(), 0);
    while let Some(from) = next.take() {
        let report = services.jobs.check_queue(&queue, repair, from, SLICE_SIZE).await?;
        looked_at += report.checked_count;
        violations.extend(report.violations.iter().map(violation_json));
        next = report.next;
        if began.elapsed() >= MAX_CHECK_TIME || violations.len() >= MAX_VIOLATIONS {
            break;
        }
    }
    let body = json!({
        "queue": queue, "repair": repair, "looked_at": looked_at, "violations": violations,
        "complete": next.is_none(), "cursor": next.map(|cursor| cursor.to_string()),
    });
    Ok(ojs_response(StatusCode::OK, body.to_string()))
}

fn violation_json(violation: &Violation) -> Value {
    json!({ "kind": violation.kind, "what": violation.location, "repaired": violation.is_repaired })
}
