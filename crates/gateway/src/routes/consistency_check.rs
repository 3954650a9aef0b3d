//! The consistency check: `GET` reports violations, `POST` also repairs them. A request checks a bounded number of
//! things for a bounded time; `cursor` continues where it ended.

use std::time::{Duration, Instant};

use actix_web::{http::StatusCode, web};
use common::name::QueueName;
use model::access::Scope;
use serde::Deserialize;
use serde_json::{Value, json};
use store::maintenance::{CheckCursor, CheckCursorError, Violation};

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

/// Where a check begins: at the start, or where the last one ended.
pub(crate) fn parse_check_cursor(cursor: Option<&str>) -> Result<CheckCursor, ApiError> {
    let start = cursor.map_or(Ok(CheckCursor::start()), str::parse);
    start.map_err(|error: CheckCursorError| ApiError::invalid(error.to_string()))
}

async fn run_check(
    caller: &Caller,
    services: &Services,
    queue: Option<&str>,
    cursor: Option<&str>,
    repair: bool,
) -> ApiResult {
    let queue = queue.ok_or_else(|| ApiError::invalid("queue is required: the name of a queue"))?;
    let start = parse_check_cursor(cursor)?;
    caller.check_queue(if repair { Scope::AdminWrite } else { Scope::AdminRead }, &queue.parse()?)?;
    let queue = known_queue(caller, services, queue).await?;
    let mut check = TimedCheck::begin();
    let next = check.run(services, &queue, repair, start).await?;
    let violations: Vec<Value> = check.violations.iter().map(|(_, violation)| violation_json(violation)).collect();
    let body = json!({
        "queue": queue, "repair": repair, "looked_at": check.looked_at, "violations": violations,
        "complete": next.is_none(), "cursor": next.map(|cursor| cursor.to_string()),
    });
    Ok(ojs_response(StatusCode::OK, body.to_string()))
}

/// A check that begins slices for a bounded time.
pub(crate) struct TimedCheck {
    began_at: Instant,
    /// What was found, with the queue of each.
    pub(crate) violations: Vec<(QueueName, Violation)>,
    pub(crate) looked_at: usize,
}

impl TimedCheck {
    pub(crate) fn begin() -> Self {
        Self { began_at: Instant::now(), violations: Vec::new(), looked_at: 0 }
    }

    /// Whether it has no time left, or found as much as an answer shows.
    pub(crate) fn is_over(&self) -> bool {
        self.began_at.elapsed() >= MAX_CHECK_TIME || self.violations.len() >= MAX_VIOLATIONS
    }

    /// Checks a queue from a place on; where it must go on, if it is over before the end of the queue.
    pub(crate) async fn run(
        &mut self,
        services: &Services,
        queue: &QueueName,
        repair: bool,
        from: CheckCursor,
    ) -> Result<Option<CheckCursor>, ApiError> {
        let partitions = services.jobs.read_partitions(queue).await?;
        let (mut partition, mut next) = (from.partition(), Some(from));
        while let Some(from) = next.take() {
            let Some(checked) = partitions.get(usize::from(partition)) else { break };
            let report = services.jobs.check_queue(checked, repair, from, SLICE_SIZE).await?;
            self.looked_at += report.checked_count;
            self.violations.extend(report.violations.into_iter().map(|violation| (queue.clone(), violation)));
            next = report.next.map(|next| next.in_partition(partition));
            if next.is_none() && usize::from(partition) + 1 < partitions.len() {
                partition += 1;
                next = Some(CheckCursor::start().in_partition(partition));
            }
            if self.is_over() {
                break;
            }
        }
        Ok(next)
    }
}

fn violation_json(violation: &Violation) -> Value {
    json!({ "kind": violation.kind, "what": violation.location, "repaired": violation.is_repaired })
}
