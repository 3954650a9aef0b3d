//! Looking over what is stored for what cannot be: `GET` reports, `POST` also mends. A request looks at a bounded number of
//! things for a bounded time; `cursor` goes on where it ended.

use std::time::{Duration, Instant};

use actix_web::{http::StatusCode, web};
use common::name::QueueName;
use serde::Deserialize;
use serde_json::{Value, json};
use store::maintenance::{Cursor, Violation};

use super::{Answer, ojs};
use crate::{body::JsonBody, error::ApiError, startup::Services};

/// A request begins no further slice after this long.
const LONG_ENOUGH: Duration = Duration::from_secs(2);
/// Things in one slice.
const SLICE: usize = 500;
/// Violations in one answer; a slice that goes beyond is the last.
const ENOUGH_VIOLATIONS: usize = 1000;

#[derive(Deserialize)]
pub(super) struct Asked {
    queue: Option<String>,
    cursor: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    queue: Option<String>,
    cursor: Option<String>,
    repair: Option<bool>,
}

/// Changes nothing.
pub(super) async fn report(services: web::Data<Services>, asked: web::Query<Asked>) -> Answer {
    look_over(&services, asked.queue.as_deref(), asked.cursor.as_deref(), false).await
}

/// Mends what can be mended, if the body says so.
pub(super) async fn repair(services: web::Data<Services>, body: JsonBody) -> Answer {
    let wanted: Wanted = body.parse()?;
    let is_repair = wanted.repair.unwrap_or(false);
    look_over(&services, wanted.queue.as_deref(), wanted.cursor.as_deref(), is_repair).await
}

async fn look_over(services: &Services, queue: Option<&str>, cursor: Option<&str>, repair: bool) -> Answer {
    let queue: QueueName = queue.ok_or_else(|| ApiError::invalid("queue is required: the name of a queue"))?.parse()?;
    let start = cursor.map_or(Ok(Cursor::start()), str::parse);
    let mut next = Some(start.map_err(|error: store::maintenance::CursorError| ApiError::invalid(error.to_string()))?);
    let (began, mut violations, mut looked_at) = (Instant::now(), Vec::new(), 0);
    while let Some(from) = next.take() {
        let report = services.jobs.check(&queue, repair, from, SLICE).await?;
        looked_at += report.looked_at;
        violations.extend(report.violations.iter().map(shown));
        next = report.next;
        if began.elapsed() >= LONG_ENOUGH || violations.len() >= ENOUGH_VIOLATIONS {
            break;
        }
    }
    let body = json!({
        "queue": queue, "repair": repair, "looked_at": looked_at, "violations": violations,
        "complete": next.is_none(), "cursor": next.map(|cursor| cursor.to_string()),
    });
    Ok(ojs(StatusCode::OK, body.to_string()))
}

fn shown(violation: &Violation) -> Value {
    json!({ "kind": violation.kind, "what": violation.what, "repaired": violation.is_repaired })
}
