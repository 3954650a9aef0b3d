//! Job events: the newest as a list, the next ones as a stream.

use actix_web::{
    HttpRequest,
    http::{Method, StatusCode, header},
    web,
};
use common::{
    id::{EntryId, JobId},
    name::QueueName,
};
use model::access::Scope;
use serde::Deserialize;
use store::{
    TooManyReaders,
    events::{EventCursor, EventFilter, EventPosition, EventReader, EventStart, ReadEvent, is_terminal_kind},
    jobs::LocatedJob,
};

use super::{
    ApiResult,
    jobs::{job_not_found, parse_job_id},
    ojs_response, parse_bounded,
    queues::unknown_queue_warnings,
    with_warnings,
};
use crate::{
    auth::{Caller, StreamSession},
    error::{ApiError, ErrorCode},
    job_event::{TerminalJobEvent, created_at},
    job_event_source::{self, JobEventSource},
    last_event_id::last_event_id,
    media_type::OJS_JSON,
    request_check::check_list_query,
    services::Services,
    sse,
};

/// The most names in a filter.
const MAX_FILTER_NAMES: usize = 100;
/// The most events in a list.
const MAX_LISTED_EVENTS: usize = 1000;
/// How far the clocks of gateways and of Redis may differ, in milliseconds.
const MAX_CLOCK_SKEW_MS: u64 = 60_000;

#[derive(Deserialize)]
pub(super) struct EventsQuery {
    types: Option<String>,
    queues: Option<String>,
    limit: Option<String>,
    after: Option<String>,
}

impl EventsQuery {
    /// What the query asks for, of what the key has. A queue that is named must be one of the key's.
    fn filter(&self, caller: &Caller) -> Result<EventFilter, ApiError> {
        let types = parse_names(self.types.as_deref(), "types", |name| {
            let is_type = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b".-_".contains(&b);
            let fits = name.len() <= 64 && name.bytes().all(is_type);
            fits.then(|| name.to_owned()).ok_or_else(|| {
                let got = common::name::quoted(name);
                ApiError::invalid(format!(
                    "types must be event types such as job.completed, separated by commas, got {got}"
                ))
            })
        })?;
        let queues =
            parse_names(self.queues.as_deref(), "queues", |name| name.parse::<QueueName>().map_err(ApiError::from))?;
        queues.iter().try_for_each(|queue| caller.check_queue(Scope::JobsRead, queue))?;
        Ok(EventFilter { types, queues, job: None, access: caller.limited() })
    }

    fn limit(&self) -> Result<usize, ApiError> {
        parse_bounded("limit", self.limit.as_deref(), 100, MAX_LISTED_EVENTS)
    }

    /// The last event that the client saw, as it says by itself, else `after`.
    fn resume_cursor(&self, request: &HttpRequest) -> Result<Option<EventCursor>, ApiError> {
        let given = last_event_id(request).or_else(|| self.after.clone());
        Ok(given.as_deref().map(str::parse).transpose()?)
    }
}

fn parse_names<T>(
    given: Option<&str>,
    what: &str,
    parse: impl Fn(&str) -> Result<T, ApiError>,
) -> Result<Vec<T>, ApiError> {
    let names: Vec<&str> = given.unwrap_or_default().split(',').filter(|name| !name.is_empty()).collect();
    if names.len() > MAX_FILTER_NAMES {
        return Err(ApiError::invalid(format!("{what} must have at most {MAX_FILTER_NAMES} names")));
    }
    names.into_iter().map(parse).collect()
}

/// Whether the client names a media type among those that it accepts.
fn accepts(request: &HttpRequest, media_types: &[&str]) -> bool {
    let given = request.headers().get_all(header::ACCEPT).filter_map(|value| value.to_str().ok());
    given.flat_map(|value| value.split(',')).any(|part| {
        let essence = part.split(';').next().unwrap_or_default().trim();
        media_types.iter().any(|media_type| essence.eq_ignore_ascii_case(media_type))
    })
}

fn wants_stream(request: &HttpRequest) -> bool {
    request.method() == Method::GET && accepts(request, &["text/event-stream"])
}

/// Where both exist, a client that does not ask for JSON gets a stream.
fn wants_list(request: &HttpRequest) -> bool {
    !wants_stream(request) && accepts(request, &["application/json", OJS_JSON])
}

/// All events.
pub(super) async fn list(
    request: HttpRequest,
    services: web::Data<Services>,
    caller: Caller,
    query: web::Query<EventsQuery>,
) -> ApiResult {
    if wants_stream(&request) {
        return stream(request, services, caller, query).await;
    }
    check_list_query(&request)?;
    let filter = query.filter(&caller)?;
    let events = services.redis.events(&filter, EventPosition::START.entry, query.limit()?).await?;
    Ok(events_response(&events, &unknown_queue_warnings(&caller, &services, &filter.queues).await))
}

/// A stream of all events.
pub(super) async fn stream(
    request: HttpRequest,
    services: web::Data<Services>,
    caller: Caller,
    query: web::Query<EventsQuery>,
) -> ApiResult {
    let (filter, after) = (query.filter(&caller)?, query.resume_cursor(&request)?);
    stream_response(&request, &services, filter, after.map_or(EventStart::Now, EventStart::After)).await
}

/// The events of a queue. A queue that does not exist has no events: its first job creates it.
pub(super) async fn queue_events(
    request: HttpRequest,
    services: web::Data<Services>,
    caller: Caller,
    queue: web::Path<String>,
    query: web::Query<EventsQuery>,
) -> ApiResult {
    let filter = EventFilter { queues: vec![queue.parse()?], ..query.filter(&caller)? };
    if wants_list(&request) {
        check_list_query(&request)?;
        let events = services.redis.events(&filter, EventPosition::START.entry, query.limit()?).await?;
        return Ok(events_response(&events, &unknown_queue_warnings(&caller, &services, &filter.queues).await));
    }
    let start = query.resume_cursor(&request)?.map_or(EventStart::Now, EventStart::After);
    stream_response(&request, &services, filter, start).await
}

/// The events of a job, from the oldest that is kept. The stream ends when the job ends.
pub(super) async fn job_events(
    request: HttpRequest,
    services: web::Data<Services>,
    caller: Caller,
    id: web::Path<String>,
    query: web::Query<EventsQuery>,
) -> ApiResult {
    if wants_list(&request) {
        check_list_query(&request)?;
    }
    let (filter, after, limit) = (query.filter(&caller)?, query.resume_cursor(&request)?, query.limit()?);
    let job = parse_job_id(&id)?;
    let filter = EventFilter { job: Some(job), ..filter };
    let located = services.jobs.locate(job).await?.ok_or_else(|| job_not_found(&id))?;
    let since = u64::try_from(created_at(&located)).unwrap_or_default().saturating_sub(MAX_CLOCK_SKEW_MS);
    let first = EntryId { milliseconds: since, sequence: 0 };
    if wants_list(&request) {
        return Ok(events_response(&services.redis.events(&filter, first, limit).await?, &[]));
    }
    if located.state().is_terminal() {
        return finished_job_events(&services, &located, (job, first), &filter, after).await;
    }
    // The id of the beginning: no event of the job is older than the job
    let session = StreamSession::open(&request)?;
    let after = after.filter(|after| !after.is_start());
    let start = after.map_or(EventStart::Since(since), EventStart::After);
    let settings = &services.settings.gateway;
    let source = JobEventSource::new(open_reader(&services, start).await?, filter, settings.shutdown_grace);
    let source = source.until_job_ends(services.jobs.clone(), job);
    Ok(sse::stream_response(sse::AwaitedSource::new(source), session, settings.event_keep_alive))
}

/// The events of a finished job. A browser that reconnects after the end gets 204, which stops it from reconnecting.
async fn finished_job_events(
    services: &Services,
    located: &LocatedJob,
    (job, first): (JobId, EntryId),
    filter: &EventFilter,
    after: Option<EventCursor>,
) -> ApiResult {
    let everything = EventFilter { job: Some(job), ..EventFilter::default() };
    let known = services.redis.events(&everything, first, MAX_LISTED_EVENTS).await?;
    let is_new = |event: &&ReadEvent| after.as_ref().is_none_or(|after| after.is_before(event));
    let has_terminal_event = known.iter().any(|event| is_terminal_kind(&event.kind));
    let has_seen_the_end =
        after == Some(EventCursor::END) || has_terminal_event && !known.iter().any(|event| is_new(&event));
    if after.is_some() && has_seen_the_end {
        return Ok(actix_web::HttpResponse::NoContent().finish());
    }
    let ending = TerminalJobEvent::for_job(located).filter(|_| !has_terminal_event);
    let events = known.iter().filter(is_new).filter(|event| filter.matches(event));
    Ok(sse::complete_response(&job_event_source::encode(events, ending.as_ref())))
}

async fn open_reader(services: &Services, start: EventStart) -> Result<EventReader, ApiError> {
    services.events.read(start).await?.map_err(|TooManyReaders { max }| {
        ApiError::new(
            ErrorCode::TooManyEventStreams,
            format!("{max} clients follow events here, which is gateway.max_event_streams"),
        )
    })
}

async fn stream_response(
    request: &HttpRequest,
    services: &Services,
    filter: EventFilter,
    start: EventStart,
) -> ApiResult {
    let session = StreamSession::open(request)?;
    let settings = &services.settings.gateway;
    let source = JobEventSource::new(open_reader(services, start).await?, filter, settings.shutdown_grace);
    Ok(sse::stream_response(sse::AwaitedSource::new(source), session, settings.event_keep_alive))
}

fn events_response(events: &[ReadEvent], warnings: &[String]) -> actix_web::HttpResponse {
    let events: Vec<&str> = events.iter().map(|event| event.json.as_str()).collect();
    let answer = format!("{{\"events\":[{}]}}", events.join(","));
    ojs_response(StatusCode::OK, with_warnings(answer, warnings))
}
