//! Streams of messages: of one channel, or of many, by name and by pattern.

use actix_web::{HttpRequest, web};
use common::{
    channel_pattern::ChannelPattern,
    name::{ChannelName, quoted},
};
use model::message::{Position, Resume};
use store::channels::{MOST_CHANNELS, Start};

use super::{parse_since, reader, unknown_position};
use crate::{
    error::{ApiError, Code},
    message_stream::MessageStream,
    routes::Answer,
    startup::Services,
};

/// What a client asks for.
#[derive(Default)]
struct Asked {
    channels: Vec<String>,
    last: Option<String>,
    since: Option<String>,
}

type Pairs = web::Query<Vec<(String, String)>>;

impl Asked {
    fn parse(request: &HttpRequest, pairs: Pairs) -> Result<Self, ApiError> {
        let mut asked = Self::default();
        for (name, value) in pairs.into_inner() {
            let once = match name.as_str() {
                "channel" => {
                    asked.channels.push(value);
                    continue;
                }
                "last_event_id" => &mut asked.last,
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
        asked.last = header.or(asked.last).filter(|last| !last.is_empty());
        Ok(asked)
    }

    async fn start(&self, services: &Services) -> Result<Start, ApiError> {
        match &self.since {
            Some(since) => Ok(Start::Since(parse_since(services, since).await?)),
            None => Ok(Start::Now),
        }
    }
}

/// The messages of a channel as they are published, behind what the client saw last.
pub(crate) async fn one(
    request: HttpRequest,
    services: web::Data<Services>,
    channel: web::Path<String>,
    pairs: Pairs,
) -> Answer {
    let channel: ChannelName = channel.parse()?;
    let asked = Asked::parse(&request, pairs)?;
    if !asked.channels.is_empty() {
        return Err(ApiError::invalid("several channels are read at /v1/stream"));
    }
    let start = match &asked.last {
        Some(last) => Start::After(last.parse::<Position>()?),
        None => asked.start(&services).await?,
    };
    let mut reader = reader(&services)?;
    reader.add(&channel, start).await??;
    Ok(MessageStream::new(reader, true, services.settings.gateway.event_keep_alive).into_response())
}

/// The messages of several channels, in the order of each of them. A channel with a star is a pattern.
pub(crate) async fn many(request: HttpRequest, services: web::Data<Services>, pairs: Pairs) -> Answer {
    let asked = Asked::parse(&request, pairs)?;
    if !(1..=MOST_CHANNELS).contains(&asked.channels.len()) {
        let got = asked.channels.len();
        return Err(ApiError::invalid(format!("a stream must have 1 to {MOST_CHANNELS} channels, got {got}")));
    }
    let (patterns, names): (Vec<&String>, Vec<&String>) = asked.channels.iter().partition(|name| name.contains('*'));
    let names: Vec<ChannelName> = names.into_iter().map(|name| name.parse()).collect::<Result<_, _>>()?;
    let patterns: Vec<ChannelPattern> =
        patterns.into_iter().map(|pattern| pattern.parse()).collect::<Result<_, _>>()?;
    let resume: Option<Resume> = asked.last.as_deref().map(str::parse).transpose()?;
    if patterns.is_empty() && resume.as_ref().is_some_and(|resume| resume.is_of_others(&names)) {
        return Err(match names.first() {
            Some(name) => unknown_position(name, asked.last.as_deref().unwrap_or_default()),
            None => ApiError::new(Code::UnknownPosition, "this is the id of another stream"),
        });
    }
    let mut reader = reader(&services)?;
    let was_at = |name| resume.as_ref().and_then(|resume| resume.position(name));
    let is_new = names.iter().any(|name| was_at(name).is_none());
    // Whoever comes back while Redis is away needs nothing of it: a browser would not come again after an error
    let usual = if is_new || resume.is_none() { Some(asked.start(&services).await?) } else { None };
    for name in &names {
        // One that the client did not read before begins like any other
        let start = was_at(name).map(Start::After).or(usual).unwrap_or(Start::Now);
        reader.add(name, start).await??;
    }
    match resume {
        Some(resume) if !patterns.is_empty() => reader.go_on(patterns, resume),
        _ => {
            for pattern in patterns {
                reader.add_pattern(pattern, usual.unwrap_or(Start::Now)).await??;
            }
        }
    }
    Ok(MessageStream::new(reader, false, services.settings.gateway.event_keep_alive).into_response())
}
