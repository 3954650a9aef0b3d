//! Jobs are done.

use actix_web::{http::StatusCode, web};
use common::time;
use model::job::Event;
use serde::Deserialize;
use serde_json::{json, value::RawValue};
use store::{
    events::Happened,
    jobs::{Ended, Settled, local_now},
};

use super::{active, fence, id, settle, stale};
use crate::{
    body::BatchBody,
    error::{ApiError, Code},
    routes::{Answer, ojs},
    startup::Services,
};

#[derive(Deserialize)]
struct Acks<'a> {
    #[serde(borrow)]
    acks: Option<Vec<&'a RawValue>>,
    worker_id: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct Ack<'a> {
    job_id: String,
    worker_id: Option<String>,
    token: Option<String>,
    #[serde(borrow)]
    result: Option<&'a RawValue>,
}

/// One job, or several as `{"acks": [...]}`.
pub(in crate::routes) async fn ack(services: web::Data<Services>, body: BatchBody) -> Answer {
    let Acks { acks: Some(items), worker_id } = body.parse()? else {
        return Ok(ojs(StatusCode::OK, one(&services, body.parse()?).await?));
    };
    settle::bounded("acks", &items)?;
    let worker = worker_id.as_deref();
    super::worker(worker_id.clone())?;
    let results = settle::each(&items, async |raw| one(&services, read(raw, worker)?).await).await;
    Ok(ojs(StatusCode::OK, format!("{{\"results\":{results}}}")))
}

/// One of several; the worker is that of all of them unless it says another.
pub(super) fn read<'a>(raw: &'a RawValue, worker: Option<&str>) -> Result<Ack<'a>, ApiError> {
    let mut ack: Ack = settle::item(raw)?;
    ack.worker_id = ack.worker_id.or_else(|| worker.map(ToOwned::to_owned));
    Ok(ack)
}

/// Records that a job is done; the JSON of the answer.
pub(super) async fn one(services: &Services, request: Ack<'_>) -> Result<String, ApiError> {
    let fence = fence(request.token, request.worker_id)?;
    let id = id(&request.job_id)?;
    let result = result(services, request.result)?;
    let claimed = active(services, id, Event::Succeed, &fence).await?;
    let now = local_now();
    let ended = Ended::completed(&claimed.job, result, Some(claimed.started_at), now);
    match services.jobs.finish(&claimed.job, claimed.entry, &fence, &ended, false).await? {
        Settled::Done => {}
        Settled::DoneBefore | Settled::Stale => return Err(stale(id)),
    }
    services.jobs.record(Happened::completed(&claimed.job, claimed.started_at, now));
    let answer = json!({
        "acknowledged": true, "id": id, "job_id": id, "state": "completed", "completed_at": time::format(now),
    });
    Ok(answer.to_string())
}

fn result<'a>(services: &Services, given: Option<&'a RawValue>) -> Result<Option<&'a str>, ApiError> {
    let limit = services.settings.jobs.result_limit_bytes;
    match given.map(RawValue::get).filter(|text| *text != "null") {
        Some(text) if text.len() > limit => {
            Err(ApiError::new(Code::PayloadTooLarge, format!("result must have at most {limit} bytes")))
        }
        result => Ok(result),
    }
}
