//! Which jobs a request is about: by a search text, by members, or both.

use common::{
    known_names,
    time::{self, Millis},
};
use model::{
    access::Scope,
    job::{JobFilter, JobState, MetaCondition},
};
use serde::Deserialize;

use crate::{auth::Caller, error::ApiError, routes::queues::known_queue, services::Services};

/// The longest text of a condition, in bytes.
const MAX_TEXT_BYTES: usize = 1024;

/// Which jobs a request is about. The members of `q` and the others count together.
#[derive(Debug, Clone, Deserialize, Default)]
pub(super) struct FilterRequest {
    pub(super) q: Option<String>,
    pub(super) state: Option<String>,
    pub(super) queue: Option<String>,
    #[serde(rename = "type")]
    pub(super) job_type: Option<String>,
    pub(super) tag: Option<String>,
    pub(super) meta: Option<String>,
    pub(super) error: Option<String>,
    pub(super) error_type: Option<String>,
    pub(super) worker: Option<String>,
    pub(super) workflow: Option<String>,
    pub(super) since: Option<String>,
    pub(super) until: Option<String>,
    pub(super) ended_since: Option<String>,
    pub(super) ended_until: Option<String>,
}

impl FilterRequest {
    /// The filter, within what the caller sees.
    pub(super) async fn validate(
        self,
        caller: &Caller,
        services: &Services,
        scope: Scope,
    ) -> Result<JobFilter, ApiError> {
        let now = services.jobs.now().await?;
        let mut filter = match self.q.as_deref() {
            Some(text) => JobFilter::from_search_text(text, now)
                .map_err(|error| ApiError::invalid(format!("q cannot be read: {error}")))?,
            None => JobFilter::default(),
        };
        if let Some(states) = self.state.filter(|states| !states.is_empty()) {
            filter.states = parse_states(&states)?;
        }
        let text = |name: &str, given: Option<String>| match given {
            Some(text) if text.is_empty() || text.len() > MAX_TEXT_BYTES => {
                Err(ApiError::invalid(format!("{name} must have 1 to {MAX_TEXT_BYTES} bytes")))
            }
            given => Ok(given),
        };
        let moment = |name: &str, given: Option<String>| -> Result<Option<Millis>, ApiError> {
            let time = given.map(|text| time::parse_time(&text, now)).transpose();
            Ok(time.map_err(|error| ApiError::invalid(format!("{name} {error}")))?.map(|time| time.at))
        };
        filter.job_type = text("type", self.job_type)?.or(filter.job_type);
        filter.tags.extend(text("tag", self.tag)?);
        filter.meta.extend(text("meta", self.meta)?.map(|meta| MetaCondition::from_text(&meta)));
        filter.errors.extend(text("error", self.error)?);
        filter.error_type = text("error_type", self.error_type)?.or(filter.error_type);
        filter.worker = text("worker", self.worker)?.or(filter.worker);
        if let Some(workflow) = self.workflow {
            filter.workflow = Some(workflow.parse()?);
        }
        filter.created_since = moment("since", self.since)?.or(filter.created_since);
        filter.created_until = moment("until", self.until)?.or(filter.created_until);
        filter.ended_since = moment("ended_since", self.ended_since)?.or(filter.ended_since);
        filter.ended_until = moment("ended_until", self.ended_until)?.or(filter.ended_until);
        if let Some(name) = self.queue.or_else(|| filter.queue.as_ref().map(ToString::to_string)) {
            caller.check_queue(scope, &name.parse()?)?;
            filter.queue = Some(known_queue(caller, services, &name).await?);
        }
        filter.access = (!caller.has_every_queue()).then(|| caller.to_access());
        Ok(filter)
    }
}

/// States, separated by commas.
pub(super) fn parse_states(text: &str) -> Result<Vec<JobState>, ApiError> {
    let names = JobState::ALL.map(JobState::as_str);
    let states = text.split(',').map(|name| {
        JobState::from_name(name.trim()).ok_or_else(|| ApiError::invalid(known_names::unknown("state", name, &names)))
    });
    states.collect()
}
