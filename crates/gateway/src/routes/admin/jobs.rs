//! Lists, searches and shows jobs.

use actix_web::{http::StatusCode, web};
use common::name::quoted;
use model::{access::Scope, job::JobFilter};
use serde::Deserialize;
use serde_json::{Value, json};
use store::jobs::{FoundJob, SearchCursor};

use super::{ApiResult, filter::FilterRequest, job_detail::detail_json, ojs_response, page::ListPage};
use crate::{
    auth::Caller,
    error::ApiError,
    routes::{
        jobs::{job_not_found, parse_job_id},
        parse_bounded,
    },
    services::Services,
};

/// The most jobs in one answer of a search that a cursor continues.
const MAX_LIMIT: usize = 1000;
/// How far pages go. What is behind is reached with a cursor.
const MAX_PAGED_JOBS: usize = 10_000;
/// Up to this number, jobs are in the exact order that a client asks for. Of more, the newest are.
const MIN_SORTED_JOBS: usize = 500;

#[derive(Deserialize)]
pub(in crate::routes) struct ListJobsQuery {
    q: Option<String>,
    state: Option<String>,
    queue: Option<String>,
    #[serde(rename = "type")]
    job_type: Option<String>,
    tag: Option<String>,
    meta: Option<String>,
    error: Option<String>,
    error_type: Option<String>,
    worker: Option<String>,
    workflow: Option<String>,
    since: Option<String>,
    until: Option<String>,
    ended_since: Option<String>,
    ended_until: Option<String>,
    page: Option<String>,
    per_page: Option<String>,
    sort: Option<String>,
    order: Option<String>,
    limit: Option<String>,
    after: Option<String>,
}

/// How a list is read: by pages in an order, or from a cursor on.
enum ListMode {
    Pages { page: ListPage, sort: SortField, is_ascending: bool },
    Cursor { limit: usize, after: Option<SearchCursor> },
}

/// By what a page is sorted.
#[derive(Debug, Clone, Copy)]
enum SortField {
    CreatedAt,
    ScheduledAt,
    Priority,
}

impl ListJobsQuery {
    fn split(self) -> Result<(FilterRequest, ListMode), ApiError> {
        let mode = self.mode()?;
        let Self { q, state, queue, job_type, tag, meta, error, error_type, worker, workflow, .. } = self;
        let Self { since, until, ended_since, ended_until, .. } = self;
        let filter = FilterRequest {
            q,
            state,
            queue,
            job_type,
            tag,
            meta,
            error,
            error_type,
            worker,
            workflow,
            since,
            until,
            ended_since,
            ended_until,
        };
        Ok((filter, mode))
    }

    fn mode(&self) -> Result<ListMode, ApiError> {
        if self.limit.is_some() || self.after.is_some() {
            if self.page.is_some() || self.sort.is_some() || self.order.is_some() {
                return Err(ApiError::invalid("page, sort and order do not go with limit and after: choose one way"));
            }
            let limit = parse_bounded("limit", self.limit.as_deref(), 100, MAX_LIMIT)?;
            return Ok(ListMode::Cursor { limit, after: parse_cursor(self.after.as_deref())? });
        }
        let page = ListPage::parse(self.page.as_deref(), self.per_page.as_deref())?;
        if page.end() > MAX_PAGED_JOBS {
            let message = format!("pages go up to job {MAX_PAGED_JOBS}: use limit, and pass next as after");
            return Err(ApiError::invalid(message));
        }
        let sort = match self.sort.as_deref().unwrap_or("created_at") {
            "created_at" => SortField::CreatedAt,
            "scheduled_at" => SortField::ScheduledAt,
            "priority" => SortField::Priority,
            other => {
                let message = format!("sort must be created_at, scheduled_at or priority, got {}", quoted(other));
                return Err(ApiError::invalid(message));
            }
        };
        let is_ascending = match self.order.as_deref().unwrap_or("desc") {
            "desc" => false,
            "asc" => true,
            other => return Err(ApiError::invalid(format!("order must be asc or desc, got {}", quoted(other)))),
        };
        Ok(ListMode::Pages { page, sort, is_ascending })
    }
}

/// A cursor that a client sends back.
pub(super) fn parse_cursor(after: Option<&str>) -> Result<Option<SearchCursor>, ApiError> {
    let read = |text: &str| {
        text.parse()
            .map_err(|()| ApiError::invalid(format!("after must be the next of an answer, got {}", quoted(text))))
    };
    after.map(read).transpose()
}

pub(in crate::routes) async fn list(
    caller: Caller,
    services: web::Data<Services>,
    query: web::Query<ListJobsQuery>,
) -> ApiResult {
    let (filter, mode) = query.into_inner().split()?;
    let filter = filter.validate(&caller, &services, Scope::AdminRead).await?;
    list_response(&services, &filter, mode).await
}

/// Dead letters, listed as jobs are.
pub(in crate::routes) async fn list_dead_letters(
    caller: Caller,
    services: web::Data<Services>,
    query: web::Query<ListJobsQuery>,
) -> ApiResult {
    let (filter, mode) = query.into_inner().split()?;
    let mut filter = filter.validate(&caller, &services, Scope::AdminRead).await?;
    filter.is_dead_letter = true;
    list_response(&services, &filter, mode).await
}

async fn list_response(services: &Services, filter: &JobFilter, mode: ListMode) -> ApiResult {
    let answer = match mode {
        ListMode::Cursor { limit, after } => search_json(services, filter, after.as_ref(), limit).await?,
        ListMode::Pages { page, sort, is_ascending } => page_json(services, filter, page, (sort, is_ascending)).await?,
    };
    Ok(ojs_response(StatusCode::OK, answer))
}

/// What a search found from a cursor on.
async fn search_json(
    services: &Services,
    filter: &JobFilter,
    after: Option<&SearchCursor>,
    limit: usize,
) -> Result<String, ApiError> {
    let page = services.jobs.search(filter, after, limit).await?;
    let more = json!({
        "next": page.cursor.map(|next| next.to_string()), "complete": page.complete, "examined": page.examined,
    });
    Ok(with_items(page.jobs, &more))
}

/// A page in an order. The newest jobs of each group of states are read and sorted.
async fn page_json(
    services: &Services,
    filter: &JobFilter,
    page: ListPage,
    (sort, is_ascending): (SortField, bool),
) -> Result<String, ApiError> {
    let found = services.jobs.search_groups(filter, page.end().max(MIN_SORTED_JOBS)).await?;
    let (is_complete, examined, mut jobs) = (found.cursor.is_none(), found.examined, found.jobs);
    let total = if is_complete || !filter.is_plain() {
        jobs.len() as u64
    } else {
        services.jobs.count_plain(filter).await?.max(jobs.len() as u64)
    };
    sort_jobs(&mut jobs, sort, is_ascending);
    let more = json!({ "pagination": page.to_json(total), "complete": is_complete, "examined": examined });
    Ok(with_items(page.of(jobs), &more))
}

fn sort_jobs(jobs: &mut [FoundJob], sort: SortField, is_ascending: bool) {
    #[derive(Deserialize)]
    struct SortFacts<'a> {
        priority: i64,
        created_at: &'a str,
        scheduled_at: Option<&'a str>,
    }
    jobs.sort_by_cached_key(|job| {
        let facts: Option<SortFacts<'_>> = serde_json::from_str(&job.json).ok();
        let (priority, created, scheduled) = facts.map_or((0, String::new(), String::new()), |facts| {
            let scheduled = facts.scheduled_at.unwrap_or_default().to_owned();
            (facts.priority, facts.created_at.to_owned(), scheduled)
        });
        match sort {
            SortField::CreatedAt => (0, created, job.id),
            SortField::ScheduledAt => (0, scheduled, job.id),
            SortField::Priority => (priority, created, job.id),
        }
    });
    if !is_ascending {
        jobs.reverse();
    }
}

/// An answer with `items` before its other members.
fn with_items(jobs: Vec<FoundJob>, more: &Value) -> String {
    let jobs: Vec<String> = jobs.into_iter().map(|job| job.json).collect();
    let more = more.to_string();
    format!("{{\"items\":[{}],{}", jobs.join(","), more.trim_start_matches('{'))
}

/// The whole job.
pub(in crate::routes) async fn show(services: web::Data<Services>, id: web::Path<String>) -> ApiResult {
    let located = services.jobs.locate(parse_job_id(&id)?).await?.ok_or_else(|| job_not_found(&id))?;
    Ok(ojs_response(StatusCode::OK, detail_json(&located.to_json())?))
}
