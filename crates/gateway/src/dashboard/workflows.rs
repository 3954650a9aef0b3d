//! The pages of workflows: those that run, and one as a graph.

use std::fmt::Write;

use actix_web::{HttpRequest, web};
use askama::Template;
use common::id::JobId;
use model::workflow::{WorkflowJobView, WorkflowKind, WorkflowMemberId, WorkflowView};
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
    /// Where a member leads, if there is something to show.
    #[expect(clippy::unused_self, reason = "templates call methods")]
    fn link(&self, member: &WorkflowJobView) -> Option<String> {
        link_of(member)
    }

    /// Why a member could not start that is a workflow.
    #[expect(clippy::unused_self, reason = "templates call methods")]
    fn error(&self, member: &WorkflowJobView) -> Option<String> {
        let error = member.nested.as_ref()?.error.as_ref()?;
        let error: Value = serde_json::from_str(error).ok()?;
        error["message"].as_str().map(ToOwned::to_owned)
    }

    fn name(&self) -> String {
        name_of(&self.view)
    }
}

/// The page of a member: of its job, or of the workflow that it is, once that has started.
fn link_of(member: &WorkflowJobView) -> Option<String> {
    match member.id {
        WorkflowMemberId::Job(id) => Some(format!("/ui/jobs/{id}")),
        WorkflowMemberId::Workflow(id) => {
            member.nested.as_ref().is_some_and(|nested| nested.exists).then(|| format!("/ui/workflows/{id}"))
        }
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

/// A column and a row.
type GridCell = (usize, usize);

const BOX: (usize, usize) = (170, 40);
const GAP: (usize, usize) = (40, 14);

/// Where each member is drawn, as column and row: a chain in a row, a group or batch below each other, a member of a DAG one
/// column behind the last of those that it depends on.
fn grid_cells(view: &WorkflowView, members: usize) -> Vec<GridCell> {
    let mut rows: Vec<usize> = Vec::new();
    let mut cells: Vec<GridCell> = Vec::with_capacity(members);
    for index in 0..members {
        let column = match view.kind {
            WorkflowKind::Chain => index,
            WorkflowKind::Group | WorkflowKind::Batch => 0,
            WorkflowKind::Dag => {
                let before = view.depends_on.get(index).into_iter().flatten();
                before.filter_map(|before| cells.get(*before)).map(|(column, _)| column + 1).max().unwrap_or(0)
            }
        };
        rows.resize(rows.len().max(column + 1), 0);
        cells.push((column, rows[column]));
        rows[column] += 1;
    }
    cells
}

/// The jobs as boxes with lines between, the callbacks of a batch behind its members.
pub(super) fn graph(view: &WorkflowView, current: Option<JobId>) -> String {
    let members: Vec<&WorkflowJobView> =
        view.jobs.iter().filter(|job| job.callback.is_none()).take(MAX_DRAWN).collect();
    let callbacks: Vec<&WorkflowJobView> = view.jobs.iter().filter(|job| job.callback.is_some()).collect();
    let cells = grid_cells(view, members.len());
    let (mut shapes, mut size) = (String::new(), (0, 0));
    let mut draw = |job: &WorkflowJobView, (column, row): GridCell| {
        let (x, y) = (column * (BOX.0 + GAP.0), row * (BOX.1 + GAP.1));
        size = (size.0.max(x + BOX.0), size.1.max(y + BOX.1));
        let state = job.state.unwrap_or("waiting");
        let is_current = if current.map(WorkflowMemberId::Job) == Some(job.id) { " current" } else { "" };
        let is_nested = if job.nested.is_some() { " nested" } else { "" };
        let link = link_of(job).map_or(String::new(), |link| format!(r#" href="{link}""#));
        let mut label: String = job.job_type.chars().take(20).collect();
        if job.job_type.chars().nth(20).is_some() {
            label.push('…');
        }
        let _ = write!(
            shapes,
            r#"<a{link}><g class="state-{state}{is_current}{is_nested}"><title>{}: {state}</title><rect x="{x}" y="{y}" width="{}" height="{}" rx="6"/><text x="{}" y="{}">{}</text></g></a>"#,
            escaped(&job.job_type),
            BOX.0,
            BOX.1,
            x + 10,
            y + 25,
            escaped(&label),
        );
    };
    for (job, cell) in members.iter().copied().zip(&cells) {
        draw(job, *cell);
    }
    let behind: Vec<GridCell> = (0..callbacks.len()).map(|index| (1, index)).collect();
    for (job, cell) in callbacks.iter().copied().zip(&behind) {
        draw(job, *cell);
    }
    let lines: String = lines_between(view, &cells, &behind).into_iter().map(|(from, to)| line(from, to)).collect();
    format!(
        r#"<svg class="graph" viewBox="-1 -1 {} {}" width="{}" height="{}">{lines}{shapes}</svg>"#,
        size.0 + 2,
        size.1 + 2,
        size.0,
        size.1
    )
}

/// From where to where the order of the jobs goes.
fn lines_between(view: &WorkflowView, members: &[GridCell], callbacks: &[GridCell]) -> Vec<(GridCell, GridCell)> {
    match view.kind {
        WorkflowKind::Chain => members.windows(2).map(|pair| (pair[0], pair[1])).collect(),
        WorkflowKind::Group | WorkflowKind::Batch => {
            members.iter().flat_map(|from| callbacks.iter().map(|to| (*from, *to))).collect()
        }
        WorkflowKind::Dag => {
            let of_member = |(to, before): (&GridCell, &Vec<usize>)| {
                let to = *to;
                before.iter().filter_map(move |before| Some((*members.get(*before)?, to))).collect::<Vec<_>>()
            };
            members.iter().zip(&view.depends_on).flat_map(of_member).collect()
        }
    }
}

/// A line from the right of a box to the left of another.
fn line((from, from_row): GridCell, (to, to_row): GridCell) -> String {
    let middle = |row: usize| row * (BOX.1 + GAP.1) + BOX.1 / 2;
    let (left, right) = (from * (BOX.0 + GAP.0) + BOX.0, to * (BOX.0 + GAP.0));
    format!(r#"<path d="M{left} {}L{right} {}"/>"#, middle(from_row), middle(to_row))
}
