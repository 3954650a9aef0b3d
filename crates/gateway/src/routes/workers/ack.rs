//! A job is done.

use actix_web::{http::StatusCode, web};
use common::{
    job::Event,
    redis::{
        events::Happened,
        jobs::{Ended, Settled, local_now},
    },
    time,
};
use serde::Deserialize;
use serde_json::{json, value::RawValue};

use super::{active, fence, id, stale};
use crate::{
    body::JsonBody,
    error::{ApiError, Code},
    routes::{Answer, ojs},
    startup::Services,
};

#[derive(Deserialize)]
struct Ack<'a> {
    job_id: String,
    worker_id: Option<String>,
    token: Option<String>,
    #[serde(borrow)]
    result: Option<&'a RawValue>,
}

pub(in crate::routes) async fn ack(services: web::Data<Services>, body: JsonBody) -> Answer {
    let request: Ack = body.parse()?;
    let fence = fence(request.token, request.worker_id)?;
    let id = id(&request.job_id)?;
    let result = result(&services, request.result)?;
    let claimed = active(&services, id, Event::Succeed).await?;
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
    Ok(ojs(StatusCode::OK, answer.to_string()))
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
