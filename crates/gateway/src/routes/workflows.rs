//! Workflows: start, look up, list, cancel.

use actix_web::{
    HttpRequest,
    http::{StatusCode, header},
    web,
};
use common::{id::WorkflowId, json::Object, name::quoted};
use model::{
    access::Scope,
    workflow::{NewWorkflow, WorkflowView},
};
use serde::Deserialize;
use store::workflows::{CancelWorkflowError, CreateWorkflowError, WorkflowCursor};

use super::{ApiResult, list_answer::list_answer, ojs_response, ojs_response_builder, parse_bounded, with_warnings};
use crate::{
    auth::Caller,
    body::JsonBody,
    context::RequestTrace,
    error::{ApiError, ErrorCode},
    idempotency::{IdempotencySeed, run_idempotent},
    services::Services,
};

pub(super) async fn create(
    caller: Caller,
    request: HttpRequest,
    services: web::Data<Services>,
    body: JsonBody,
) -> ApiResult {
    run_idempotent(&request, &services, &[body.bytes()], async |seed| {
        let members: Object = body.parse()?;
        let now = if NewWorkflow::mentions_time(&members) {
            services.jobs.now().await?
        } else {
            services.jobs.estimated_now()
        };
        let mut new = NewWorkflow::parse(&members, services.settings.workflows.max_jobs, now)?;
        check_allowed(&caller, &new)?;
        let warnings = std::mem::take(&mut new.warnings);
        let own_id = seed.filter(|_| new.id.is_none()).map(IdempotencySeed::workflow_id);
        new.id = new.id.or(own_id);
        let id = match services.workflows.create_workflow(new, RequestTrace::from_request(&request), now).await? {
            Ok(id) => id,
            // The same request created it before
            Err(CreateWorkflowError::Duplicate(id)) if own_id == Some(id) => id,
            Err(CreateWorkflowError::Duplicate(id)) => {
                return Err(ApiError::new(ErrorCode::Duplicate, format!("a workflow with id {id} exists")));
            }
            Err(CreateWorkflowError::Refused(queue, why)) => {
                return Err(ApiError::from(why).with_subject(&format!("queue {queue}")));
            }
        };
        let location = format!("/ojs/v1/workflows/{id}");
        let json = with_warnings(workflow_json(&find_workflow(&services, id).await?), &warnings);
        Ok(ojs_response_builder(StatusCode::CREATED).insert_header((header::LOCATION, location)).body(json))
    })
    .await
}

/// Refuses jobs of queues that the key is not for, and names outside of its namespace, also in nested workflows.
fn check_allowed(caller: &Caller, new: &NewWorkflow) -> Result<(), ApiError> {
    new.jobs().into_iter().try_for_each(|job| caller.check_queue(Scope::JobsWrite, &job.queue))?;
    new.names().into_iter().try_for_each(|name| caller.check_name("workflow", name))
}

pub(super) async fn show(services: web::Data<Services>, id: web::Path<String>) -> ApiResult {
    Ok(ojs_response(StatusCode::OK, workflow_json(&find_workflow(&services, parse_workflow_id(&id)?).await?)))
}

#[derive(Deserialize)]
pub(super) struct ListWorkflowsQuery {
    state: Option<String>,
    after: Option<String>,
    limit: Option<String>,
}

/// Running workflows, those first that are checked next. Others are found by their ids.
pub(super) async fn list(
    caller: Caller,
    services: web::Data<Services>,
    query: web::Query<ListWorkflowsQuery>,
) -> ApiResult {
    if let Some(state) = query.state.as_deref().filter(|state| *state != "running") {
        let got = quoted(state);
        return Err(ApiError::invalid(format!(
            "state must be running, got {got}: a workflow that is over can be looked up by its id"
        )));
    }
    let limit = parse_bounded("limit", query.limit.as_deref(), 50, 100)?;
    let after: Option<WorkflowCursor> = query.after.as_deref().map(str::parse).transpose()?;
    let page = services.workflows.running_workflows(after, limit, caller.limited().as_deref()).await?;
    let workflows: Vec<String> = page.workflows.iter().map(WorkflowView::to_json).collect();
    let next = page.next.map(|next| next.to_string());
    Ok(ojs_response(StatusCode::OK, list_answer(&workflows, next.as_deref()).finish()))
}

pub(super) async fn cancel(services: web::Data<Services>, id: web::Path<String>) -> ApiResult {
    let parsed = parse_workflow_id(&id)?;
    match services.workflows.cancel_workflow(parsed).await? {
        Ok(()) => Ok(ojs_response(StatusCode::OK, workflow_json(&find_workflow(&services, parsed).await?))),
        Err(CancelWorkflowError::NotFound) => Err(workflow_not_found(&id)),
        Err(CancelWorkflowError::AlreadyEnded(state)) => {
            Err(ApiError::new(ErrorCode::Conflict, format!("a workflow that is {state} cannot be cancelled")))
        }
    }
}

async fn find_workflow(services: &Services, id: WorkflowId) -> Result<WorkflowView, ApiError> {
    services.workflows.workflow(id).await?.ok_or_else(|| workflow_not_found(&id.to_string()))
}

/// `{"workflow": ...}`.
fn workflow_json(workflow: &WorkflowView) -> String {
    ["{\"workflow\":", &workflow.to_json(), "}"].concat()
}

/// An id in a path. An invalid id is not found: no workflow can have it.
fn parse_workflow_id(text: &str) -> Result<WorkflowId, ApiError> {
    text.parse().map_err(|_| workflow_not_found(text))
}

fn workflow_not_found(id: &str) -> ApiError {
    ApiError::not_found(format_args!("workflow {}", quoted(id)))
}
