//! How far a running job has come.

use actix_web::{http::StatusCode, web};
use common::json::ObjectWriter;
use model::job::Progress;
use serde::Deserialize;
use serde_json::value::RawValue;
use store::{
    events::Happened,
    jobs::{Located, local_now},
};

use super::{
    Answer,
    jobs::{job_id, unknown},
    ojs,
    workers::{fence, is_theirs, stale},
};
use crate::{body::JsonBody, error::ApiError, startup::Services};

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
    let progress =
        Progress::new(request.progress, request.data).map_err(|error| ApiError::invalid(error.to_string()))?;
    let fence = fence(request.token, request.worker_id)?;
    let located = services.jobs.locate(id).await?.ok_or_else(|| unknown(&path))?;
    let Located::Queued { job, entry, holder: Some(holder) } = located else { return Err(stale(id)) };
    let shown = progress.after(holder.progress.as_deref(), local_now());
    if !is_theirs(&holder, &fence) || !services.jobs.heartbeat(&job, entry, &fence, Some(&shown)).await? {
        return Err(stale(id));
    }
    services.jobs.record(Happened::progress(&job, &shown));
    let mut answer = ObjectWriter::default();
    answer.text("id", &id.to_string()).text("state", "active").splice(&shown);
    Ok(ojs(StatusCode::OK, answer.finish()))
}
