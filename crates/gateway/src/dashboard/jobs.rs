//! The page of jobs: search, and what is done with many at once.

use actix_web::{HttpRequest, web};
use askama::Template;
use common::id::JobId;
use futures_util::{StreamExt, stream};
use model::{
    access::Scope,
    job::{JobFilter, JobState},
};
use serde::Deserialize;
use serde_json::value::RawValue;
use store::jobs::{FoundJob, SearchCursor};

use super::{
    page::{Page, redirect},
    plain::encode,
    session::Form,
    unknown_action,
};
use crate::{auth::Caller, error::ApiError, request_check::query_pairs, routes::ApiResult, services::Services};

/// Letters of an error or of arguments that a row shows.
const EXCERPT_LENGTH: usize = 120;
/// Jobs on a page.
const PAGE_SIZE: usize = 50;
/// The most jobs that one click changes.
const MAX_CHANGED: usize = 1000;
/// Searches for one click: each examines a bounded number of jobs.
const MAX_SEARCHES: usize = 20;
/// Jobs that are changed at the same time.
const CONCURRENCY: usize = 16;

#[derive(Template)]
#[template(path = "jobs.html")]
struct JobsPage {
    page: Page,
    query: String,
    rows: Vec<JobRow>,
    /// Why the search cannot be read.
    problem: Option<String>,
    /// How many match, if that is known without reading them.
    count: Option<u64>,
    next: Option<String>,
    /// How many jobs were looked at, if the search stopped early.
    examined: Option<usize>,
    queues: Vec<String>,
}

struct JobRow {
    id: String,
    queue: String,
    state: &'static str,
    job_type: String,
    at: i64,
    attempt: u64,
    /// The beginning of its last error, or of its arguments.
    excerpt: String,
    has_failed: bool,
    /// The signal, or the name of a sleep.
    waits_for: String,
}

#[derive(Deserialize, Default)]
struct ShownJob<'j> {
    #[serde(borrow, default)]
    args: Option<&'j RawValue>,
    #[serde(rename = "type", default)]
    job_type: String,
    #[serde(default)]
    attempt: u64,
    #[serde(default)]
    error: Option<ShownError>,
    #[serde(default)]
    waiting: Option<ShownWait>,
}

#[derive(Deserialize)]
struct ShownWait {
    step: String,
    #[serde(default)]
    signal: Option<String>,
}

#[derive(Deserialize)]
struct ShownError {
    #[serde(default)]
    message: String,
}

impl JobRow {
    fn new(found: &FoundJob) -> Self {
        let shown: ShownJob<'_> = serde_json::from_str(&found.json).unwrap_or_default();
        let error = shown.error.map(|error| error.message).filter(|message| !message.is_empty());
        let args = || shown.args.map(|args| args.get().chars().take(EXCERPT_LENGTH + 1).collect()).unwrap_or_default();
        Self {
            id: found.id.to_string(),
            queue: found.queue.to_string(),
            state: found.state.as_str(),
            job_type: shown.job_type,
            at: found.at,
            attempt: shown.attempt,
            has_failed: error.is_some(),
            waits_for: shown.waiting.map(|wait| wait.signal.unwrap_or(wait.step)).unwrap_or_default(),
            excerpt: error.unwrap_or_else(args),
        }
    }
}

/// The states in which jobs are looked for with one click.
const STATES: [&str; 8] =
    ["available", "active", "scheduled", "retryable", "pending", "completed", "discarded", "cancelled"];

impl JobsPage {
    fn states(&self) -> [(&'static str, String, bool); 8] {
        let rest = self.query.split(' ').filter(|word| !word.starts_with("state:")).collect::<Vec<_>>().join(" ");
        STATES.map(|state| {
            let is_chosen = self.query.split(' ').any(|word| word == format!("state:{state}"));
            // A second click takes it away again
            let query = if is_chosen { rest.clone() } else { format!("state:{state} {rest}").trim().to_owned() };
            (state, format!("/ui/jobs?q={}", encode(&query)), is_chosen)
        })
    }

    /// What a search may be completed with, one a line.
    fn completions(&self) -> String {
        let states = STATES.iter().map(|state| format!("state:{state}"));
        let qualifiers = model::job::search_text::QUALIFIERS.iter().map(|qualifier| format!("{qualifier}:"));
        let queues = self.queues.iter().map(|queue| format!("queue:{queue}"));
        states.chain(queues).chain(qualifiers).collect::<Vec<_>>().join("\n")
    }

    fn next_path(&self) -> Option<String> {
        self.next.as_ref().map(|next| format!("/ui/jobs?q={}&after={}", encode(&self.query), encode(next)))
    }
}

/// Reads a search, for what the caller may see.
fn read_filter(caller: &Caller, text: &str, now: i64) -> Result<JobFilter, ApiError> {
    let mut filter = JobFilter::from_search_text(text, now).map_err(|error| ApiError::invalid(error.to_string()))?;
    if let Some(queue) = &filter.queue {
        caller.check_queue(Scope::JobsRead, queue)?;
    }
    filter.access = (!caller.has_every_queue()).then(|| caller.to_access());
    Ok(filter)
}

pub(crate) async fn page(request: HttpRequest, caller: Caller, services: web::Data<Services>) -> ApiResult {
    let pairs = query_pairs(request.query_string());
    let value = |name: &str| pairs.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value.as_str());
    let query = value("q").trim().to_owned();
    let after: Option<SearchCursor> = value("after").parse().ok();
    let page = Page::open(&request, "/ui/jobs").await;
    let mut queues = services.jobs.list_some_queues(200).await?;
    queues.retain(|queue| caller.has_queue(queue));
    let queues = queues.iter().map(ToString::to_string).collect();
    let mut template =
        JobsPage { page, query, rows: Vec::new(), problem: None, count: None, next: None, examined: None, queues };
    match read_filter(&caller, &template.query, template.page.now) {
        Ok(filter) => {
            let found = services.jobs.search(&filter, after.as_ref(), PAGE_SIZE).await?;
            template.rows = found.jobs.iter().map(JobRow::new).collect();
            template.examined = (!found.complete).then_some(found.examined);
            template.next = found.cursor.map(|cursor| cursor.to_string());
            if filter.is_plain() && filter.queue.is_some() {
                template.count = Some(services.jobs.count_plain(&filter).await?);
            }
        }
        Err(error) => template.problem = Some(error.message().to_owned()),
    }
    template.page.render(&template)
}

#[derive(Template)]
#[template(path = "jobs_confirm.html")]
struct ConfirmPage {
    page: Page,
    action: &'static str,
    query: String,
    ids: Vec<String>,
    /// How many it is about, and whether there may be more.
    count: usize,
    has_more: bool,
    question: String,
    button: String,
    waiting: String,
}

/// What may be done with many jobs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ManyJobsAction {
    Retry,
    Cancel,
    Delete,
}

impl ManyJobsAction {
    fn of(text: &str) -> Option<Self> {
        match text {
            "retry" => Some(Self::Retry),
            "cancel" => Some(Self::Cancel),
            "delete" => Some(Self::Delete),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Cancel => "cancel",
            Self::Delete => "delete",
        }
    }

    /// The keys of its texts: the question, the button, what is said while it can be undone, what is said afterwards.
    fn texts(self) -> [&'static str; 4] {
        match self {
            Self::Retry => ["jobs.retry_question", "jobs.retry_count", "jobs.retrying", "jobs_retried"],
            Self::Cancel => ["jobs.cancel_question", "jobs.cancel_count", "jobs.cancelling", "jobs_cancelled"],
            Self::Delete => ["jobs.delete_question", "jobs.delete_count", "jobs.deleting", "jobs_deleted"],
        }
    }

    /// The states that are meant when a search names none: nobody means to run what is planned for later at once.
    fn default_states(self) -> Vec<JobState> {
        if self == Self::Retry {
            return vec![JobState::Discarded];
        }
        JobState::ALL.into_iter().filter(|state| self.fits(*state)).collect()
    }

    /// Whether a job in that state can be changed like this.
    fn fits(self, state: JobState) -> bool {
        match self {
            Self::Retry => {
                matches!(state, JobState::Discarded | JobState::Cancelled | JobState::Retryable | JobState::Scheduled)
            }
            Self::Cancel => !state.is_terminal(),
            Self::Delete => state.is_terminal(),
        }
    }

    async fn run(self, services: &Services, id: JobId) -> bool {
        match self {
            Self::Retry => services.jobs.retry_now(id).await.is_ok_and(|outcome| outcome.is_ok()),
            Self::Cancel => services.jobs.cancel(id).await.is_ok_and(|outcome| outcome.is_ok()),
            Self::Delete => services.jobs.delete_ended(id).await.is_ok_and(|outcome| outcome.is_ok()),
        }
    }
}

/// Asks whether it is meant, with the number of jobs, and does it when the form comes back.
pub(crate) async fn act(
    request: HttpRequest,
    caller: Caller,
    services: web::Data<Services>,
    action: web::Path<String>,
    form: Form,
) -> ApiResult {
    let action = ManyJobsAction::of(&action).ok_or_else(|| unknown_action(&action))?;
    let query = form.get("q").trim().to_owned();
    let (mut ids, has_more) = match form.get("everything") {
        "" => (chosen_jobs(&caller, &services, &form, action).await?, false),
        _ => matching_jobs(&caller, &services, &query, action).await?,
    };
    let back = format!("/ui/jobs?q={}", encode(&query));
    let [question, button, waiting, note] = action.texts();
    if ids.is_empty() {
        return Ok(redirect(&back, "jobs_none", ""));
    }
    if form.get("sure").is_empty() {
        let page = Page::open(&request, "/ui/jobs").await;
        let count = ids.len();
        let what = if query.is_empty() { page.t("jobs.any").to_owned() } else { query.clone() };
        let template = ConfirmPage {
            action: action.name(),
            ids: if form.get("everything").is_empty() {
                ids.iter().map(ToString::to_string).collect()
            } else {
                Vec::new()
            },
            question: page.f2(question, page.num(count), what),
            button: page.n(button, count),
            waiting: page.n(waiting, count),
            page,
            query,
            count,
            has_more,
        };
        return template.page.render(&template);
    }
    // Never more than was confirmed
    if let Some(confirmed) = form.number::<usize>("sure")? {
        ids.truncate(confirmed);
    }
    let done = stream::iter(ids).map(|id| action.run(&services, id)).buffer_unordered(CONCURRENCY);
    let done = done.filter(|done| std::future::ready(*done)).count().await;
    Ok(redirect(&back, note, &done.to_string()))
}

/// The jobs that were ticked, as far as they are of queues of the key.
async fn chosen_jobs(
    caller: &Caller,
    services: &Services,
    form: &Form,
    action: ManyJobsAction,
) -> Result<Vec<JobId>, ApiError> {
    let mut chosen = Vec::new();
    for id in form.all("id").filter_map(|id| id.parse::<JobId>().ok()).take(MAX_CHANGED) {
        let Some((located, queue)) = services.jobs.locate_with_queue(id).await? else { continue };
        if action.fits(located.state()) && caller.may_queue(Scope::JobsWrite, &queue) {
            chosen.push(id);
        }
    }
    Ok(chosen)
}

/// The jobs that match a search, up to the bound, and whether there may be more.
async fn matching_jobs(
    caller: &Caller,
    services: &Services,
    query: &str,
    action: ManyJobsAction,
) -> Result<(Vec<JobId>, bool), ApiError> {
    let mut filter = read_filter(caller, query, services.redis.estimated_now())?;
    // Only states in which it can be done: what it cannot be done to is not even read
    if filter.states.is_empty() {
        filter.states = action.default_states();
    } else {
        filter.states.retain(|state| action.fits(*state));
        if filter.states.is_empty() {
            return Ok((Vec::new(), false));
        }
    }
    let (mut ids, mut cursor) = (Vec::new(), None);
    for _ in 0..MAX_SEARCHES {
        let found = services.jobs.search_ids(&filter, cursor.as_ref(), MAX_CHANGED - ids.len()).await?;
        ids.extend(found.jobs.iter().filter(|job| action.fits(job.state)).map(|job| job.id));
        cursor = found.cursor;
        if ids.len() >= MAX_CHANGED || cursor.is_none() {
            break;
        }
    }
    Ok((ids, cursor.is_some()))
}
