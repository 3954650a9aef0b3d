//! The history of a channel in pages, from a position or a time.

use std::time::Duration;

use actix_web::{HttpRequest, HttpResponse, web};
use common::name::{ChannelName, quoted};
use model::message::{
    Position,
    continuity::{Continuity, Gap},
};
use serde::Deserialize;
use store::channels::{ChannelPage, ReaderEvent, ReaderStart};

use super::{list::channel_not_found, parse_since, unknown_position};
use crate::{
    auth::{Caller, while_admitted},
    error::ApiError,
    routes::{ApiResult, json_response, list_answer::list_answer, parse_bounded, parse_flag},
    services::Services,
};

/// The default number of messages on a page.
const DEFAULT_PAGE_SIZE: usize = 100;
/// The most messages on a page.
const MAX_PAGE_SIZE: usize = 1000;

#[derive(Deserialize)]
pub(crate) struct ChannelHistoryQuery {
    after: Option<String>,
    since: Option<String>,
    limit: Option<String>,
    wait_ms: Option<String>,
    create: Option<String>,
}

/// Messages, oldest first. With `wait_ms` an empty page waits for the next message.
pub(crate) async fn history(
    caller: Caller,
    request: HttpRequest,
    services: web::Data<Services>,
    channel: web::Path<String>,
    query: web::Query<ChannelHistoryQuery>,
) -> ApiResult {
    let channel: ChannelName = channel.parse()?;
    let limit = parse_bounded("limit", query.limit.as_deref(), DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)?;
    let wait = query.parse_wait(&services)?;
    // Who was there before goes on even if the history is lost
    if !parse_flag("create", query.create.as_deref())?.unwrap_or(false)
        && query.after.is_none()
        && services.channels.channel_info(&channel).await?.is_none()
    {
        return Err(channel_not_found(&caller, &services, &channel).await?);
    }
    let asked = start_position(&services, &channel, &query).await?;
    // Who does not say where it was asks for what there is
    let gap = |asked, page: &ChannelPage| page.gap(asked).filter(|_| query.has_start());
    let page = services.channels.read_channel_page(&channel, asked, limit).await?;
    if page.continuity == Continuity::Unknown {
        return Err(unknown_position(&channel, &asked.to_string()));
    }
    if !wait.is_zero() && page.messages.is_empty() && gap(asked, &page).is_none() {
        let after = page.read_up_to;
        while_admitted(&request, wait_for_message(&services, &channel, after, wait)).await?;
        let page = services.channels.read_channel_page(&channel, after, limit).await?;
        return Ok(page_response(&channel, &page, gap(after, &page)));
    }
    Ok(page_response(&channel, &page, gap(asked, &page)))
}

impl ChannelHistoryQuery {
    fn has_start(&self) -> bool {
        self.after.is_some() || self.since.is_some()
    }

    fn parse_wait(&self, services: &Services) -> Result<Duration, ApiError> {
        let max_ms = services.settings.gateway.max_wait.as_millis();
        let Some(text) = &self.wait_ms else { return Ok(Duration::ZERO) };
        let wait = text.parse::<u64>().ok().filter(|wait| u128::from(*wait) <= max_ms);
        wait.map(Duration::from_millis).ok_or_else(|| {
            ApiError::invalid(format!("wait_ms must be an integer from 0 to {max_ms}, got {}", quoted(text)))
        })
    }
}

/// Returns when a message follows a position, when the time is over, or when the gateway stops.
async fn wait_for_message(
    services: &Services,
    channel: &ChannelName,
    after: Position,
    wait: Duration,
) -> Result<(), ApiError> {
    let _place = services.job_waiters.try_acquire()?;
    let mut reader = super::open_reader(services)?;
    reader.add_channel(channel, ReaderStart::After(after)).await??;
    let arrived = async {
        loop {
            // A message without a position is not kept, so the history does not have it
            match reader.next().await {
                ReaderEvent::Message(message) if message.position.is_none() => {}
                _ => break,
            }
        }
    };
    tokio::select! {
        () = arrived => {}
        () = services.stopping.cancelled() => {}
        () = tokio::time::sleep(wait) => {}
    }
    Ok(())
}

async fn start_position(
    services: &Services,
    channel: &ChannelName,
    query: &ChannelHistoryQuery,
) -> Result<Position, ApiError> {
    match (&query.after, &query.since) {
        (Some(_), Some(_)) => Err(ApiError::invalid("give either after or since")),
        (Some(after), None) => Ok(after.parse()?),
        (None, Some(since)) => {
            let at = parse_since(services, since).await?;
            Ok(services.channels.retained_channel_position_at(channel, at).await?)
        }
        (None, None) => Ok(Position::START),
    }
}

fn page_response(channel: &ChannelName, page: &ChannelPage, gap: Option<Gap>) -> HttpResponse {
    let messages: Vec<String> = page.messages.iter().map(|message| message.to_json(channel)).collect();
    let read_up_to = page.read_up_to.to_string();
    let mut answer = list_answer(&messages, page.has_more.then_some(read_up_to.as_str()));
    answer.text("last_id", &read_up_to);
    if let Some(gap) = gap {
        answer.raw("gap", &gap.to_json());
    }
    json_response(answer)
}
