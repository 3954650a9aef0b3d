//! The history of a channel, page by page, from a position or from a time on.

use std::time::Duration;

use actix_web::{HttpResponse, web};
use common::{
    json::ObjectWriter,
    name::{ChannelName, quoted},
};
use model::message::{
    Position,
    continuity::{Continuity, Gap},
};
use serde::Deserialize;
use store::channels::{Page, Start, Told};

use super::{parse_since, unknown_position};
use crate::{
    error::ApiError,
    routes::{Answer, bounded},
    startup::Services,
};

/// Messages on a page that does not say how many.
const USUAL_PAGE: usize = 100;
/// Messages on a page.
const LARGEST_PAGE: usize = 1000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Query {
    after: Option<String>,
    since: Option<String>,
    limit: Option<String>,
    wait_ms: Option<String>,
}

/// What was published, oldest first. With `wait_ms`, if there is nothing, as soon as there is.
pub(crate) async fn history(
    services: web::Data<Services>,
    channel: web::Path<String>,
    query: web::Query<Query>,
) -> Answer {
    let channel: ChannelName = channel.parse()?;
    let most = bounded("limit", query.limit.as_deref(), USUAL_PAGE, LARGEST_PAGE)?;
    let wait = query.wait(&services)?;
    let asked = begin(&services, &channel, &query).await?;
    // Who does not say where it was asks for what there is
    let gap = |asked, page: &Page| page.gap(asked).filter(|_| query.says_where());
    let page = services.redis.channel_page(&channel, asked, most).await?;
    if page.continuity == Continuity::Unknown {
        return Err(unknown_position(&channel, &asked.to_string()));
    }
    if !wait.is_zero() && page.messages.is_empty() && gap(asked, &page).is_none() {
        let after = page.after;
        something_to_read(&services, &channel, after, wait).await?;
        let page = services.redis.channel_page(&channel, after, most).await?;
        return Ok(shown(&channel, &page, gap(after, &page)));
    }
    Ok(shown(&channel, &page, gap(asked, &page)))
}

impl Query {
    fn says_where(&self) -> bool {
        self.after.is_some() || self.since.is_some()
    }

    fn wait(&self, services: &Services) -> Result<Duration, ApiError> {
        let most = services.settings.gateway.max_wait.as_millis();
        let Some(text) = &self.wait_ms else { return Ok(Duration::ZERO) };
        let wait = text.parse::<u64>().ok().filter(|wait| u128::from(*wait) <= most);
        wait.map(Duration::from_millis).ok_or_else(|| {
            ApiError::invalid(format!("wait_ms must be an integer from 0 to {most}, got {}", quoted(text)))
        })
    }
}

/// Returns when there is something behind a position, when the time is over or when the gateway stops.
async fn something_to_read(
    services: &Services,
    channel: &ChannelName,
    after: Position,
    wait: Duration,
) -> Result<(), ApiError> {
    let _place = services.waiting.place()?;
    let mut reader = super::reader(services)?;
    reader.add(channel, Start::After(after)).await??;
    let told = async {
        loop {
            // What has no position is not kept: it is nothing to read
            match reader.next().await {
                Told::Message(message) if message.position.is_none() => {}
                _ => break,
            }
        }
    };
    tokio::select! {
        () = told => {}
        () = services.stopping.cancelled() => {}
        () = tokio::time::sleep(wait) => {}
    }
    Ok(())
}

async fn begin(services: &Services, channel: &ChannelName, query: &Query) -> Result<Position, ApiError> {
    match (&query.after, &query.since) {
        (Some(_), Some(_)) => Err(ApiError::invalid("give either after or since")),
        (Some(after), None) => Ok(after.parse()?),
        (None, Some(since)) => {
            let at = parse_since(services, since).await?;
            Ok(services.redis.channel_kept_since(channel, at).await?)
        }
        (None, None) => Ok(Position::START),
    }
}

fn shown(channel: &ChannelName, page: &Page, gap: Option<Gap>) -> HttpResponse {
    let messages: Vec<String> = page.messages.iter().map(|message| message.to_json(channel)).collect();
    let mut json = ObjectWriter::with_capacity(messages.iter().map(String::len).sum::<usize>() + 256);
    json.raw("messages", &format!("[{}]", messages.join(",")));
    json.text("next", &page.after.to_string()).raw("more", if page.is_more { "true" } else { "false" });
    if let Some(gap) = gap {
        json.raw("gap", &gap.to_json());
    }
    HttpResponse::Ok().content_type("application/json").body(json.finish())
}
