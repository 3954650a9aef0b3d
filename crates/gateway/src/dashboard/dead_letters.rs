//! The page of dead letters: grouped by what went wrong, retry and delete one or all of a group.

use std::collections::BTreeMap;

use actix_web::{HttpRequest, web};
use askama::Template;
use common::{id::JobId, name::QueueName};
use model::access::Scope;
use serde::Deserialize;
use store::jobs::{DiscardedFilter, DiscardedList};

use super::{
    page::{Page, redirect},
    session::Form,
    unknown_action,
};
use crate::{
    auth::Caller,
    error::ApiError,
    request_check::query_pairs,
    routes::{ApiResult, known_queue},
    services::Services,
};

/// How many of the newest dead letters a page looks at.
const MAX_LOOKED_AT: usize = 1000;
/// Groups on the page, letters of a group that are listed, and of all groups together.
const MAX_GROUPS: usize = 50;
const MAX_LISTED: usize = 50;
const MAX_ROWS: usize = 150;
/// The most that one click retries or deletes.
const MAX_ACTED_ON: usize = 1000;

#[derive(Template)]
#[template(path = "dead_letters.html")]
struct DeadLettersPage {
    page: Page,
    groups: Vec<LetterGroup>,
    /// Groups that are not on the page.
    more_groups: usize,
    /// How many there are, and how many of them were looked at.
    total: u64,
    seen: usize,
    queue: String,
    error: String,
}

impl DeadLettersPage {
    /// Whether there are more than those that were looked at.
    fn is_partial(&self) -> bool {
        self.queue.is_empty() && (self.seen as u64) < self.total
    }
}

/// Dead letters with the same type, queue and kind of error.
struct LetterGroup {
    queue: String,
    job_type: String,
    error_type: String,
    message: String,
    count: usize,
    newest: String,
    letters: Vec<DeadLetterRow>,
}

struct DeadLetterRow {
    id: String,
    ended_at: String,
    attempt: u64,
    message: String,
}

#[derive(Deserialize, Default)]
struct SeenLetter {
    #[serde(default)]
    id: String,
    #[serde(default)]
    queue: String,
    #[serde(rename = "type", default)]
    job_type: String,
    #[serde(default)]
    attempt: u64,
    #[serde(default)]
    discarded_at: String,
    #[serde(default)]
    error: SeenError,
}

#[derive(Deserialize, Default)]
struct SeenError {
    #[serde(rename = "type", default)]
    error_type: String,
    #[serde(default)]
    message: String,
}

/// Which dead letters a page or a form is about.
async fn filter_of(
    caller: &Caller,
    services: &Services,
    queue: &str,
    error: &str,
    job_type: &str,
) -> Result<DiscardedFilter, ApiError> {
    let queue: Option<QueueName> = match queue {
        "" => None,
        name => {
            let queue = known_queue(caller, services, name).await?;
            caller.check_queue(Scope::JobsRead, &queue)?;
            Some(queue)
        }
    };
    let text = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    Ok(DiscardedFilter {
        access: (!caller.has_every_queue()).then(|| caller.to_access()),
        queue,
        job_type: text(job_type),
        error_type: text(error),
        ..DiscardedFilter::default()
    })
}

pub(crate) async fn page(request: HttpRequest, caller: Caller, services: web::Data<Services>) -> ApiResult {
    let pairs = query_pairs(request.query_string());
    let value = |name: &str| pairs.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value.as_str());
    let (queue, error) = (value("queue").to_owned(), value("error").to_owned());
    let filter = filter_of(&caller, &services, &queue, &error, "").await?;
    let found = services.jobs.list_discarded(DiscardedList::DeadLetters, &filter, None, MAX_LOOKED_AT).await?;
    let stats = services.jobs.dead_letter_stats(|name| caller.has_queue(name)).await?;
    let page = Page::open(&request, "/ui/dead-letters").await;
    let seen = found.jobs.len();
    let (groups, more_groups) = bounded(group(found.jobs.iter().map(|(_, json)| json.as_str())));
    let total = stats.by_queue.values().sum();
    let template = DeadLettersPage { page, groups, more_groups, total, seen, queue, error };
    template.page.render(&template)
}

fn group<'j>(jobs: impl Iterator<Item = &'j str>) -> Vec<LetterGroup> {
    let mut groups: BTreeMap<(String, String, String), LetterGroup> = BTreeMap::new();
    for seen in jobs.filter_map(|json| serde_json::from_str::<SeenLetter>(json).ok()) {
        let SeenLetter { id, queue, job_type, attempt, discarded_at, error } = seen;
        let key = (queue.clone(), job_type.clone(), error.error_type.clone());
        let group = groups.entry(key).or_insert_with(|| LetterGroup {
            queue,
            job_type,
            error_type: error.error_type,
            message: error.message.clone(),
            count: 0,
            newest: discarded_at.clone(),
            letters: Vec::new(),
        });
        group.count += 1;
        if discarded_at > group.newest {
            group.newest.clone_from(&discarded_at);
        }
        if group.letters.len() < MAX_LISTED {
            group.letters.push(DeadLetterRow { id, ended_at: discarded_at, attempt, message: error.message });
        }
    }
    let mut groups: Vec<LetterGroup> = groups.into_values().collect();
    groups.sort_by_key(|group| std::cmp::Reverse(group.count));
    groups
}

/// As much as a page shows, and how many groups are left out.
fn bounded(mut groups: Vec<LetterGroup>) -> (Vec<LetterGroup>, usize) {
    let more_groups = groups.len().saturating_sub(MAX_GROUPS);
    groups.truncate(MAX_GROUPS);
    let mut left = MAX_ROWS;
    for group in &mut groups {
        group.letters.truncate(left);
        left -= group.letters.len();
    }
    (groups, more_groups)
}

/// Retries or deletes a group, or the letters that were chosen.
pub(crate) async fn act(
    caller: Caller,
    services: web::Data<Services>,
    action: web::Path<String>,
    form: Form,
) -> ApiResult {
    let is_retry = match action.as_str() {
        "retry" => true,
        "delete" => false,
        other => return Err(unknown_action(other)),
    };
    let chosen: Vec<JobId> = form.all("id").filter_map(|id| id.parse().ok()).take(MAX_ACTED_ON).collect();
    let filter = filter_of(&caller, &services, form.get("queue"), form.get("error"), form.get("type")).await?;
    let ids = if chosen.is_empty() {
        let found = services.jobs.list_discarded(DiscardedList::DeadLetters, &filter, None, MAX_ACTED_ON).await?;
        found.jobs.into_iter().map(|(id, _)| id).collect()
    } else {
        own_letters(&caller, &services, chosen).await?
    };
    let (done, note) = if is_retry {
        (services.jobs.redrive_all(&ids).await?, "letters_retried")
    } else {
        (services.jobs.delete_dead_letters(&ids).await?, "letters_deleted")
    };
    Ok(redirect("/ui/dead-letters", note, &done.to_string()))
}

/// Those of these dead letters that are of queues of the key.
async fn own_letters(caller: &Caller, services: &Services, ids: Vec<JobId>) -> Result<Vec<JobId>, ApiError> {
    if caller.has_every_queue() {
        return Ok(ids);
    }
    let mut own = Vec::with_capacity(ids.len());
    for id in ids {
        let found = services.jobs.find_dead_letter(id).await?;
        if found.is_some_and(|(queue, _)| caller.has_queue(&queue)) {
            own.push(id);
        }
    }
    Ok(own)
}
