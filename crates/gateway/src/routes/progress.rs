//! How far a running job has come.

use actix_web::{http::StatusCode, web};
use common::{
    json::ObjectWriter,
    redis::{
        events::Happened,
        jobs::{Located, PULL, local_now},
    },
    time,
};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    Answer,
    jobs::{job_id, unknown},
    ojs,
    workers::{fence, stale},
};
use crate::{body::JsonBody, error::ApiError, startup::Services};

/// Largest `data`.
const MOST_BYTES: usize = 4096;

#[derive(Deserialize)]
struct Report<'a> {
    progress: Option<f64>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    worker_id: Option<String>,
    token: Option<String>,
}

/// Notes how far an attempt has come. It is a sign of life too: the lease begins anew.
pub(super) async fn report(services: web::Data<Services>, path: web::Path<String>, body: JsonBody) -> Answer {
    let id = job_id(&path)?;
    let request: Report = body.parse()?;
    if request.progress.is_none() && request.data.is_none() {
        return Err(ApiError::invalid("progress (a number from 0 to 1) or data (a JSON object) is required"));
    }
    let data = request.data.filter(|data| data.get() != "null");
    if let Some(data) = data.filter(|data| !data.get().starts_with('{') || data.get().len() > MOST_BYTES) {
        let message = format!("data must be a JSON object of at most {MOST_BYTES} bytes");
        return Err(ApiError::invalid(format!("{message}, got {} bytes", data.get().len())));
    }
    let fence = fence(request.token, request.worker_id)?;
    let located = services.jobs.locate(id).await?.ok_or_else(|| unknown(&path))?;
    let Located::Queued { job, entry, holder: Some(holder) } = located else { return Err(stale(id)) };
    // A bar that goes backwards puzzles: the spec wants the highest kept
    let before =
        holder.progress.as_deref().and_then(|text| serde_json::from_str::<Shown>(text).ok()).unwrap_or_default();
    let given = request.progress.map(|number| number.clamp(0.0, 1.0));
    let number = given.map_or(before.progress, |given| Some(before.progress.map_or(given, |before| before.max(given))));
    let mut shown = ObjectWriter::default();
    if let Some(number) = number {
        shown.raw("progress", &number.to_string());
    }
    let kept = before.progress_data.as_ref().map(|data| data.get().to_owned());
    if let Some(data) = data.map(|data| data.get().to_owned()).or(kept) {
        shown.raw("progress_data", &data);
    }
    shown.text("progress_at", &time::format(local_now()));
    let shown = shown.finish();
    if holder.consumer != PULL || !services.jobs.heartbeat(&job, entry, &fence, Some(&shown)).await? {
        return Err(stale(id));
    }
    services.jobs.record(Happened::progress(&job, &shown));
    let mut answer = ObjectWriter::default();
    answer.text("id", &id.to_string()).text("state", "active").splice(&shown);
    Ok(ojs(StatusCode::OK, answer.finish()))
}

/// Progress as it is kept.
#[derive(Deserialize, Default)]
struct Shown {
    progress: Option<f64>,
    progress_data: Option<Box<RawValue>>,
}
