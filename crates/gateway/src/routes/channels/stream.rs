//! Streams of messages: of one channel, or of many, by name and by pattern.

use actix_web::{HttpRequest, web};
use common::{
    channel_pattern::ChannelPattern,
    name::{ChannelName, quoted},
};
use model::message::{Position, ResumeToken};
use store::channels::{MAX_CHANNELS, ReaderStart};

use super::{open_reader, parse_since, unknown_position};
use crate::{
    error::{ApiError, ErrorCode},
    message_source::MessageSource,
    routes::ApiResult,
    sse::stream_response,
    startup::Services,
};

/// What a client asks for.
#[derive(Default)]
struct MessageStreamQuery {
    channels: Vec<String>,
    last_event_id: Option<String>,
    since: Option<String>,
}

type QueryPairs = web::Query<Vec<(String, String)>>;

impl MessageStreamQuery {
    fn parse(request: &HttpRequest, pairs: QueryPairs) -> Result<Self, ApiError> {
        let mut asked = Self::default();
        for (name, value) in pairs.into_inner() {
            let once = match name.as_str() {
                "channel" => {
                    asked.channels.push(value);
                    continue;
                }
                "last_event_id" => &mut asked.last_event_id,
                "since" => &mut asked.since,
                _ => {
                    let allowed = "the parameters are channel, last_event_id and since";
                    return Err(ApiError::invalid(format!("{allowed}, got {}", quoted(&name))));
                }
            };
            if once.replace(value).is_some() {
                return Err(ApiError::invalid(format!("{name} must be given once")));
            }
        }
        // A browser that comes back knows better than the address that it began with
        let header = request.headers().get("last-event-id").map(|value| value.to_str().unwrap_or("?").to_owned());
        asked.last_event_id = header.or(asked.last_event_id).filter(|last| !last.is_empty());
        Ok(asked)
    }

    async fn start(&self, services: &Services) -> Result<ReaderStart, ApiError> {
        match &self.since {
            Some(since) => Ok(ReaderStart::Since(parse_since(services, since).await?)),
            None => Ok(ReaderStart::Now),
        }
    }
}

/// The messages of a channel as they are published, behind what the client saw last.
pub(crate) async fn stream_channel(
    request: HttpRequest,
    services: web::Data<Services>,
    channel: web::Path<String>,
    pairs: QueryPairs,
) -> ApiResult {
    let channel: ChannelName = channel.parse()?;
    let asked = MessageStreamQuery::parse(&request, pairs)?;
    if !asked.channels.is_empty() {
        return Err(ApiError::invalid("several channels are read at /v1/stream"));
    }
    let start = match &asked.last_event_id {
        Some(last) => ReaderStart::After(last.parse::<Position>()?),
        None => asked.start(&services).await?,
    };
    let mut reader = open_reader(&services)?;
    reader.add_channel(&channel, start).await??;
    Ok(stream_response(MessageSource::of_one_channel(reader), services.settings.gateway.event_keep_alive))
}

/// The messages of several channels, in the order of each of them. A channel with a star is a pattern.
pub(crate) async fn stream_channels(
    request: HttpRequest,
    services: web::Data<Services>,
    pairs: QueryPairs,
) -> ApiResult {
    let asked = MessageStreamQuery::parse(&request, pairs)?;
    if !(1..=MAX_CHANNELS).contains(&asked.channels.len()) {
        let got = asked.channels.len();
        return Err(ApiError::invalid(format!("a stream must have 1 to {MAX_CHANNELS} channels, got {got}")));
    }
    let (patterns, names): (Vec<&String>, Vec<&String>) = asked.channels.iter().partition(|name| name.contains('*'));
    let names: Vec<ChannelName> = names.into_iter().map(|name| name.parse()).collect::<Result<_, _>>()?;
    let patterns: Vec<ChannelPattern> =
        patterns.into_iter().map(|pattern| pattern.parse()).collect::<Result<_, _>>()?;
    let resume: Option<ResumeToken> = asked.last_event_id.as_deref().map(str::parse).transpose()?;
    if patterns.is_empty() && resume.as_ref().is_some_and(|resume| resume.has_only_other_channels(&names)) {
        return Err(match names.first() {
            Some(name) => unknown_position(name, asked.last_event_id.as_deref().unwrap_or_default()),
            None => ApiError::new(ErrorCode::UnknownPosition, "this is the id of another stream"),
        });
    }
    let mut reader = open_reader(&services)?;
    let was_at = |name| resume.as_ref().and_then(|resume| resume.position(name));
    let is_new = names.iter().any(|name| was_at(name).is_none());
    // Whoever comes back while Redis is away needs nothing of it: a browser would not come again after an error
    let usual = if is_new || resume.is_none() { Some(asked.start(&services).await?) } else { None };
    for name in &names {
        // One that the client did not read before begins like any other
        let start = was_at(name).map(ReaderStart::After).or(usual).unwrap_or(ReaderStart::Now);
        reader.add_channel(name, start).await??;
    }
    match resume {
        Some(resume) if !patterns.is_empty() => reader.resume_patterns(patterns, resume),
        _ => {
            for pattern in patterns {
                reader.add_pattern(pattern, usual.unwrap_or(ReaderStart::Now)).await??;
            }
        }
    }
    Ok(stream_response(MessageSource::of_many_channels(reader), services.settings.gateway.event_keep_alive))
}
