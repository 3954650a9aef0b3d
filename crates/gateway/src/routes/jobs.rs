//! Jobs: enqueue, look up, cancel.

use actix_web::{
    HttpRequest, HttpResponse,
    http::{StatusCode, header},
    web,
};
use common::{
    id::JobId,
    job::NewJob,
    json::Object,
    redis::jobs::{Enqueued, NotCancelled, Refused, local_now},
};

use super::{Answer, job_json, ojs, ojs_builder};
use crate::{
    body::JsonBody,
    context::Trace,
    error::{ApiError, Code},
    startup::Services,
};

pub(super) async fn enqueue(request: HttpRequest, services: web::Data<Services>, body: JsonBody) -> Answer {
    let members: Object = body.parse()?;
    // Start times are reckoned on Redis's clock, which decides when they have come
    let now = if NewJob::mentions_time(&members) { services.jobs.now().await? } else { local_now() };
    let new = NewJob::parse(&members, now)?;
    let enqueued = services.jobs.enqueue(new, Trace::of(&request), now).await?.map_err(refused)?;
    Ok(created(&enqueued))
}

/// 201 with the job and where to find it.
pub(super) fn created(enqueued: &Enqueued) -> HttpResponse {
    let view = enqueued.job.view(enqueued.state);
    let location = format!("/ojs/v1/jobs/{}", enqueued.job.id);
    ojs_builder(StatusCode::CREATED).insert_header((header::LOCATION, location)).body(job_json(&view.to_json()))
}

pub(super) fn refused(refused: Refused) -> ApiError {
    match refused {
        Refused::Duplicate(id) => ApiError::new(Code::Duplicate, format!("a job with id {id} exists")),
        Refused::Full { max_depth } => {
            ApiError::new(Code::QueueFull, format!("the queue holds {max_depth} waiting jobs, which is its max_depth"))
        }
        Refused::TooManyQueues { max_queues } => {
            ApiError::new(Code::TooManyQueues, format!("there are {max_queues} queues, which is jobs.max_queues"))
        }
    }
}

pub(super) async fn show(services: web::Data<Services>, id: web::Path<String>) -> Answer {
    let located = services.jobs.locate(job_id(&id)?).await?.ok_or_else(|| unknown(&id))?;
    Ok(ojs(StatusCode::OK, job_json(&located.to_json())))
}

pub(super) async fn cancel(services: web::Data<Services>, id: web::Path<String>) -> Answer {
    match services.jobs.cancel(job_id(&id)?).await? {
        Ok(cancelled) => Ok(ojs(StatusCode::OK, job_json(&cancelled.0))),
        Err(NotCancelled::Unknown) => Err(unknown(&id)),
        Err(NotCancelled::Conflict(conflict)) => Err(conflict.into()),
    }
}

/// An id in a path. What is no id cannot be the id of a job either.
pub(super) fn job_id(text: &str) -> Result<JobId, ApiError> {
    text.parse().map_err(|_| unknown(text))
}

pub(super) fn unknown(id: &str) -> ApiError {
    ApiError::not_found(format_args!("job {}", common::name::quoted(id)))
}
