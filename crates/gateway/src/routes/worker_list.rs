//! Workers: what they do, and directives for them.

use actix_web::{http::StatusCode, web};
use serde::Deserialize;
use store::workers::{Directive, ListedWorker, WorkerKey, WorkerLookup};

use super::{ApiResult, list_answer::list_answer, ojs_response, parse_bounded};
use crate::{
    error::{ApiError, ErrorCode},
    services::Services,
};

#[derive(Deserialize)]
pub(super) struct ListWorkersQuery {
    limit: Option<String>,
    after: Option<String>,
}

/// Workers in the order of their ids. `next` is the cursor of the next page.
pub(super) async fn list(services: web::Data<Services>, query: web::Query<ListWorkersQuery>) -> ApiResult {
    let limit = parse_bounded("limit", query.limit.as_deref(), 100, 500)?;
    let after: Option<WorkerKey> = query.after.as_deref().map(str::parse).transpose()?;
    let all = services.workers.worker_keys().await?;
    let mut keys = all.iter().filter(|key| after.as_ref().is_none_or(|after| *key > after)).cloned();
    let page: Vec<WorkerKey> = keys.by_ref().take(limit).collect();
    let next = keys.next().and(page.last()).map(|key| key.as_str().to_owned());
    let workers: Vec<String> = services.workers.workers(&page).await?.iter().map(ListedWorker::to_json).collect();
    let mut answer = list_answer(&workers, next.as_deref());
    answer.number("total", all.len() as u64);
    Ok(ojs_response(StatusCode::OK, answer.finish()))
}

pub(super) async fn show(services: web::Data<Services>, id: web::Path<String>) -> ApiResult {
    Ok(worker_response(&find_worker(&services, &id).await?))
}

pub(super) async fn quiet(services: web::Data<Services>, id: web::Path<String>) -> ApiResult {
    send_directive(&services, &id, Directive::Quiet).await
}

pub(super) async fn resume(services: web::Data<Services>, id: web::Path<String>) -> ApiResult {
    send_directive(&services, &id, Directive::Running).await
}

pub(super) async fn terminate(services: web::Data<Services>, id: web::Path<String>) -> ApiResult {
    send_directive(&services, &id, Directive::Terminate).await
}

async fn send_directive(services: &Services, id: &str, directive: Directive) -> ApiResult {
    let mut listed = find_worker(services, id).await?;
    listed.directive = Some(services.workers.set_directive(&listed.key, directive).await?);
    tracing::info!(worker = listed.key.as_str(), directive = directive.as_str(), "directive given");
    Ok(worker_response(&listed))
}

pub(crate) async fn find_worker(services: &Services, id: &str) -> Result<ListedWorker, ApiError> {
    match services.workers.find_worker(id).await? {
        WorkerLookup::Found(listed) => Ok(*listed),
        WorkerLookup::NotFound => Err(ApiError::not_found(format_args!("worker {}", common::name::quoted(id)))),
        WorkerLookup::Ambiguous(number) => {
            let name = common::name::quoted(id);
            Err(ApiError::new(ErrorCode::Conflict, format!("{number} workers have the name {name}: use the id of one")))
        }
    }
}

fn worker_response(listed: &ListedWorker) -> actix_web::HttpResponse {
    ojs_response(StatusCode::OK, format!("{{\"worker\":{}}}", listed.to_json()))
}
