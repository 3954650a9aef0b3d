//! The stream that pages follow: parts of the page that changed, as HTML.

use actix_web::{HttpRequest, web, web::Bytes};
use common::{id::JobId, name::ChannelName};
use model::access::Scope;
use store::{
    TooManyReaders,
    events::{EventReader, EventReaderItem, EventStart},
};

use super::{
    Watcher,
    known::Parts,
    rendered::changed,
    shared_parts::{SentParts, digest, parts_event},
};
use crate::{
    auth::{Caller, StreamSession},
    dashboard::{channels::ChannelSource, job, job_sheet::JobSheet, page::Page},
    error::{ApiError, ErrorCode},
    request_check::query_pairs,
    routes::{ApiResult, job_not_found, parse_job_id},
    services::Services,
    sse::{self, AwaitedSource, AwaitedSse, SseFrames},
};

/// Follows the overview.
struct OverviewSource {
    page: Page,
    watcher: Watcher,
    services: Services,
    sent: SentParts,
}

/// Follows a job until it ends.
struct JobSource {
    page: Page,
    services: Services,
    job: JobId,
    reader: EventReader,
    sent: SentParts,
    has_looked: bool,
}

/// Follows what `page` names.
pub(crate) async fn follow(request: HttpRequest, caller: Caller, services: web::Data<Services>) -> ApiResult {
    let pairs = query_pairs(request.query_string());
    let value = |name: &str| pairs.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value.as_str());
    let sent = SentParts::of(value("have"));
    let keep_alive = services.settings.gateway.event_keep_alive;
    match value("page") {
        "overview" => {
            let page = Page::of(&request, "/");
            if !page.sees_all() {
                return Err(ApiError::scope_required(Scope::AdminRead));
            }
            let session = StreamSession::open(&request)?;
            let watcher = services.dashboard.watch(&services);
            let source = OverviewSource { page, watcher, services: services.get_ref().clone(), sent };
            Ok(sse::stream_response(AwaitedSource::new(source), session, keep_alive))
        }
        "job" => {
            let job = parse_job_id(value("id"))?;
            if !caller.may(Scope::JobsRead) {
                return Err(ApiError::scope_required(Scope::JobsRead));
            }
            // A job of another queue is not found, as if it did not exist
            let located = services.jobs.locate_with_queue(job).await?;
            if !located.is_some_and(|(_, queue)| caller.has_queue(&queue)) {
                return Err(job_not_found(value("id")));
            }
            let session = StreamSession::open(&request)?;
            let reader = services.events.read(EventStart::Now).await?.map_err(|TooManyReaders { max }| {
                let message = format!("{max} clients follow events here, which is gateway.max_event_streams");
                ApiError::new(ErrorCode::TooManyEventStreams, message)
            })?;
            let page = Page::of(&request, "/ui/jobs");
            let source = JobSource { page, services: services.get_ref().clone(), job, reader, sent, has_looked: false };
            Ok(sse::stream_response(AwaitedSource::new(source), session, keep_alive))
        }
        "channel" => {
            let channel: ChannelName = value("name").parse()?;
            caller.check_channel(Scope::ChannelsSubscribe, &channel)?;
            let session = StreamSession::open(&request)?;
            Ok(sse::stream_response(
                AwaitedSource::new(ChannelSource::open(&services, &channel).await?),
                session,
                keep_alive,
            ))
        }
        _ => Err(ApiError::invalid("page must be overview, job or channel")),
    }
}

impl JobSource {
    /// The page as it is now. The stream ends with the job.
    async fn frames(&mut self) -> SseFrames {
        let Ok(Some((located, queue))) = self.services.jobs.locate_with_queue(self.job).await else {
            return SseFrames::Last(Bytes::new());
        };
        self.page.now = self.services.redis.estimated_now();
        let Ok(view) = JobSheet::read(&self.services, &located, &queue, self.job, None).await else {
            return SseFrames::Last(Bytes::new());
        };
        let Ok(parts) = job::live_parts(&self.page, &view) else { return SseFrames::Last(Bytes::new()) };
        let frames = changed_parts(&mut self.sent, parts);
        if !view.is_over {
            return SseFrames::More(frames);
        }
        let mut last = String::from_utf8_lossy(&frames).into_owned();
        sse::push_event(&mut last, None, "finished", "{}");
        SseFrames::Last(last.into())
    }
}

impl AwaitedSse for JobSource {
    fn first_id(&self) -> String {
        "0".to_owned()
    }

    async fn next(&mut self) -> SseFrames {
        // The job may have moved between the page and the stream
        if !std::mem::replace(&mut self.has_looked, true) {
            return self.frames().await;
        }
        loop {
            match self.reader.next().await {
                EventReaderItem::Stopped => return SseFrames::Last(Bytes::new()),
                EventReaderItem::Gap(_) => return self.frames().await,
                item @ EventReaderItem::Events(..) => {
                    if item.events().any(|event| event.job == Some(self.job)) {
                        return self.frames().await;
                    }
                }
            }
        }
    }

    /// An end of which no event tells.
    async fn next_when_silent(&mut self) -> SseFrames {
        match self.frames().await {
            SseFrames::More(bytes) if bytes.is_empty() => SseFrames::keep_alive(),
            frames => frames,
        }
    }
}

/// An event with those parts that differ from what was sent.
fn changed_parts(sent: &mut SentParts, mut parts: Parts) -> Bytes {
    parts.retain(|name, html| sent.differs(name, &digest(html)));
    if parts.is_empty() {
        return Bytes::new();
    }
    parts_event(parts.iter().map(|(name, html)| (*name, html.as_str())))
}

impl AwaitedSse for OverviewSource {
    fn first_id(&self) -> String {
        "0".to_owned()
    }

    async fn next(&mut self) -> SseFrames {
        tokio::select! {
            () = self.services.stopping.cancelled() => return SseFrames::Last(Bytes::new()),
            () = self.watcher.changed() => {}
        }
        let overview = self.watcher.overview();
        match self.services.dashboard.render(&mut self.page, &overview) {
            Ok(parts) => SseFrames::More(changed(&parts, &mut self.sent, &self.page)),
            Err(_) => SseFrames::Last(Bytes::new()),
        }
    }
}
