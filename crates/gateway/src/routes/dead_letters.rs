//! Dead letters: list, try again, delete.

use actix_web::{http::StatusCode, web};
use serde::Deserialize;
use serde_json::json;

use super::{
    Answer, bounded, job_json,
    jobs::{job_id, unknown},
    ojs,
};
use crate::startup::Services;

#[derive(Deserialize)]
pub(super) struct Query {
    limit: Option<String>,
}

pub(super) async fn list(services: web::Data<Services>, query: web::Query<Query>) -> Answer {
    let limit = bounded("limit", query.limit.as_deref(), 100, 1000)?;
    let jobs = services.jobs.dead_letters(limit).await?;
    Ok(ojs(StatusCode::OK, format!("{{\"jobs\":[{}]}}", jobs.join(","))))
}

pub(super) async fn retry(services: web::Data<Services>, id: web::Path<String>) -> Answer {
    let job = services.jobs.redrive(job_id(&id)?).await?.ok_or_else(|| unknown(&id))?;
    Ok(ojs(StatusCode::OK, job_json(&job)))
}

pub(super) async fn delete(services: web::Data<Services>, id: web::Path<String>) -> Answer {
    let parsed = job_id(&id)?;
    if !services.jobs.delete_dead_letter(parsed).await? {
        return Err(unknown(&id));
    }
    Ok(ojs(StatusCode::OK, json!({ "deleted": true, "id": parsed, "job_id": parsed }).to_string()))
}
