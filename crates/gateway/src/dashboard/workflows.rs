//! The pages of workflows: those that run, and one as a graph.

use std::fmt::Write;

use actix_web::{HttpRequest, web};
use askama::Template;
use common::id::JobId;
use model::workflow::{WorkflowJobView, WorkflowKind, WorkflowView};
use serde_json::Value;

use super::{
    page::{Page, redirect},
    session::Form,
    unknown_action,
};
use crate::{auth::Caller, error::ApiError, routes::ApiResult, services::Services};

/// Workflows on the page.
const MAX_LISTED: usize = 100;
/// Jobs of a graph that are drawn.
const MAX_DRAWN: usize = 60;

#[derive(Template)]
#[template(path = "workflows.html")]
struct WorkflowsPage {
    page: Page,
    rows: Vec<WorkflowView>,
}

#[derive(Template)]
#[template(path = "workflow.html")]
struct WorkflowPage {
    page: Page,
    view: WorkflowView,
    graph: String,
}

impl WorkflowsPage {
    #[expect(clippy::unused_self, reason = "templates call methods")]
    fn name(&self, row: &WorkflowView) -> String {
        name_of(row)
    }
}

impl WorkflowPage {
    fn name(&self) -> String {
        name_of(&self.view)
    }
}

fn name_of(view: &WorkflowView) -> String {
    let members: Value = serde_json::from_str(&view.name_and_meta).unwrap_or_default();
    members["name"].as_str().unwrap_or_default().to_owned()
}

pub(crate) async fn page(request: HttpRequest, caller: Caller, services: web::Data<Services>) -> ApiResult {
    let rows = services.workflows.running_workflows(None, MAX_LISTED, caller.limited().as_deref()).await?.workflows;
    let page = Page::open(&request, "/ui/workflows").await;
    let template = WorkflowsPage { page, rows };
    template.page.render(&template)
}

fn not_found(id: &str) -> ApiError {
    ApiError::not_found(format_args!("workflow {}", common::name::quoted(id)))
}

pub(crate) async fn show(request: HttpRequest, services: web::Data<Services>, id: web::Path<String>) -> ApiResult {
    let parsed = id.parse().map_err(|_| not_found(&id))?;
    let view = services.workflows.workflow(parsed).await?.ok_or_else(|| not_found(&id))?;
    let graph = graph(&view, None);
    let page = Page::open(&request, "/ui/workflows").await;
    let template = WorkflowPage { page, view, graph };
    template.page.render(&template)
}

pub(crate) async fn act(services: web::Data<Services>, path: web::Path<(String, String)>, _: Form) -> ApiResult {
    let (id, action) = path.into_inner();
    if action != "cancel" {
        return Err(unknown_action(&action));
    }
    let parsed = id.parse().map_err(|_| not_found(&id))?;
    services.workflows.cancel_workflow(parsed).await?.map_err(|refused| match refused {
        store::workflows::CancelWorkflowError::NotFound => not_found(&id),
        store::workflows::CancelWorkflowError::AlreadyEnded(_) => {
            ApiError::new(crate::error::ErrorCode::Conflict, "the workflow has ended")
        }
    })?;
    Ok(redirect(&format!("/ui/workflows/{id}"), "workflow_cancelled", &id))
}

/// A text as SVG holds it.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

const BOX: (usize, usize) = (170, 40);
const GAP: (usize, usize) = (40, 14);

/// The jobs as boxes with lines between: a chain in a row, the members of a group or batch below each other, with callbacks
/// behind them.
pub(super) fn graph(view: &WorkflowView, current: Option<JobId>) -> String {
    let members: Vec<&WorkflowJobView> =
        view.jobs.iter().filter(|job| job.callback.is_none()).take(MAX_DRAWN).collect();
    let callbacks: Vec<&WorkflowJobView> = view.jobs.iter().filter(|job| job.callback.is_some()).collect();
    let is_chain = view.kind == WorkflowKind::Chain;
    let place = |index: usize| if is_chain { (index, 0) } else { (0, index) };
    let (mut shapes, mut size) = (String::new(), (0, 0));
    let mut draw = |job: &WorkflowJobView, (column, row): (usize, usize)| {
        let (x, y) = (column * (BOX.0 + GAP.0), row * (BOX.1 + GAP.1));
        size = (size.0.max(x + BOX.0), size.1.max(y + BOX.1));
        let state = job.state.map_or("waiting", |state| state.as_str());
        let is_current = if current == Some(job.id) { " current" } else { "" };
        let mut label: String = job.job_type.chars().take(20).collect();
        if job.job_type.chars().nth(20).is_some() {
            label.push('…');
        }
        let _ = write!(
            shapes,
            r#"<a href="/ui/jobs/{}"><g class="state-{state}{is_current}"><title>{}: {state}</title><rect x="{x}" y="{y}" width="{}" height="{}" rx="6"/><text x="{}" y="{}">{}</text></g></a>"#,
            job.id,
            escaped(&job.job_type),
            BOX.0,
            BOX.1,
            x + 10,
            y + 25,
            escaped(&label),
        );
    };
    for (index, job) in members.iter().copied().enumerate() {
        draw(job, place(index));
    }
    for (index, job) in callbacks.iter().copied().enumerate() {
        draw(job, (1, index));
    }
    let mut lines = String::new();
    let middle = |row: usize| row * (BOX.1 + GAP.1) + BOX.1 / 2;
    if is_chain {
        for index in 1..members.len() {
            let x = index * (BOX.0 + GAP.0);
            let _ = write!(lines, r#"<path d="M{} {}H{x}"/>"#, x - GAP.0, middle(0));
        }
    } else {
        for row in 0..members.len() {
            for target in 0..callbacks.len() {
                let _ = write!(lines, r#"<path d="M{} {}L{} {}"/>"#, BOX.0, middle(row), BOX.0 + GAP.0, middle(target));
            }
        }
    }
    format!(
        r#"<svg class="graph" viewBox="-1 -1 {} {}" width="{}" height="{}">{lines}{shapes}</svg>"#,
        size.0 + 2,
        size.1 + 2,
        size.0,
        size.1
    )
}
