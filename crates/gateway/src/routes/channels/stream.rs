//! Streams of messages: of one channel, or of many by name and by pattern.

use std::sync::Arc;

use actix_web::{HttpRequest, web};
use common::{channel_pattern::ChannelPattern, name::ChannelName};
use model::{
    MemberInfo,
    access::Scope,
    message::{Position, ResumeToken},
};
use store::channels::{MAX_CHANNELS, ReaderStart, SharedFilter};

use super::{open_reader, parse_delta, parse_filter, parse_since, unknown_position};
use crate::{
    auth::{Caller, StreamSession},
    client_presence::{ClientPresence, PresenceRequest, member_of},
    error::{ApiError, ErrorCode},
    last_event_id::last_event_id,
    message_socket::is_stranger,
    message_source::MessageSource,
    request_check::query_pairs,
    routes::{ApiResult, parse_flag},
    services::Services,
    sse::stream_response,
};

/// What a client asks for.
#[derive(Default)]
struct MessageStreamQuery {
    channels: Vec<String>,
    last_event_id: Option<String>,
    since: Option<String>,
    filter: Option<String>,
    delta: Option<String>,
    presence: Option<String>,
    join: Option<String>,
    member: Option<String>,
    info: Option<String>,
}

impl MessageStreamQuery {
    fn parse(request: &HttpRequest) -> Self {
        let mut query = Self { last_event_id: last_event_id(request), ..Self::default() };
        for (name, value) in query_pairs(request.query_string()) {
            match name.as_str() {
                "channel" => query.channels.push(value),
                "since" => query.since = Some(value),
                "filter" => query.filter = Some(value),
                "delta" => query.delta = Some(value),
                "presence" => query.presence = Some(value),
                "join" => query.join = Some(value),
                "member" => query.member = Some(value),
                "info" => query.info = Some(value),
                // An error is final for a browser, and client libraries add parameters
                _ => {}
            }
        }
        query
    }

    fn filter(&self, services: &Services) -> Result<Option<Arc<SharedFilter>>, ApiError> {
        Ok(self.filter.as_deref().map(|text| parse_filter(services, text)).transpose()?.flatten())
    }

    /// What the client asks for on every channel that it names.
    fn presence(&self, caller: &Caller, is_stranger: bool) -> Result<PresenceRequest, ApiError> {
        let joins = parse_flag("join", self.join.as_deref())?.unwrap_or(self.member.is_some());
        if !joins && (self.member.is_some() || self.info.is_some()) {
            return Err(ApiError::invalid("member and info are for a stream that takes part: give join=true"));
        }
        let info = self.info.as_deref().map(MemberInfo::parse).transpose().map_err(ApiError::invalid)?;
        let member = joins.then(|| member_of(caller, is_stranger, self.member.as_deref())).transpose()?;
        Ok(PresenceRequest {
            joins: member.map(|member| (member, info.unwrap_or_default())),
            watches: parse_flag("presence", self.presence.as_deref())?.unwrap_or(false),
        })
    }

    /// Takes part in channels. A client that reconnects while Redis is away takes part when Redis is back.
    async fn open_presence(
        &self,
        services: &Services,
        asked: PresenceRequest,
        channels: &[ChannelName],
    ) -> Result<Option<ClientPresence>, ApiError> {
        if asked.is_empty() {
            return Ok(None);
        }
        let mut presence = ClientPresence::new(&services.presence);
        for channel in channels {
            presence.set(channel, asked.clone(), self.last_event_id.is_some()).await?;
        }
        Ok(Some(presence))
    }

    async fn start(&self, services: &Services) -> Result<ReaderStart, ApiError> {
        match &self.since {
            Some(since) => Ok(ReaderStart::Since(parse_since(services, since).await?)),
            None => Ok(ReaderStart::Now),
        }
    }
}

/// A stream of the messages of a channel, after the last one that the client saw.
pub(crate) async fn stream_channel(
    request: HttpRequest,
    services: web::Data<Services>,
    caller: Caller,
    channel: web::Path<String>,
) -> ApiResult {
    let session = StreamSession::open(&request)?;
    let channel: ChannelName = channel.parse()?;
    let query = MessageStreamQuery::parse(&request);
    if !query.channels.is_empty() {
        return Err(ApiError::invalid("several channels are read at /v1/stream"));
    }
    let (filter, asked) = (query.filter(&services)?, query.presence(&caller, is_stranger(&request, &services))?);
    let wants_deltas = parse_delta(query.delta.as_deref())?;
    let start = match &query.last_event_id {
        Some(last) => ReaderStart::After(last.parse::<Position>()?),
        None => query.start(&services).await?,
    };
    let mut reader = open_reader(&services)?;
    reader.add_channel(&channel, start).await??;
    reader.filter_channel(&channel, filter);
    if wants_deltas {
        reader.want_deltas();
    }
    let presence = query.open_presence(&services, asked, std::slice::from_ref(&channel)).await?;
    let keep_alive = services.settings.gateway.event_keep_alive;
    Ok(stream_response(MessageSource::of_one_channel(reader).with_presence(presence), session, keep_alive))
}

/// A stream of the messages of several channels, in order within each channel. A channel with a star is a pattern.
pub(crate) async fn stream_channels(request: HttpRequest, services: web::Data<Services>, caller: Caller) -> ApiResult {
    let query = MessageStreamQuery::parse(&request);
    if !(1..=MAX_CHANNELS).contains(&query.channels.len()) {
        let got = query.channels.len();
        return Err(ApiError::invalid(format!("a stream must have 1 to {MAX_CHANNELS} channels, got {got}")));
    }
    let (patterns, names): (Vec<&String>, Vec<&String>) = query.channels.iter().partition(|name| name.contains('*'));
    let names: Vec<ChannelName> = names.into_iter().map(|name| name.parse()).collect::<Result<_, _>>()?;
    let patterns: Vec<ChannelPattern> =
        patterns.into_iter().map(|pattern| pattern.parse()).collect::<Result<_, _>>()?;
    names.iter().try_for_each(|name| caller.check_channel(Scope::ChannelsSubscribe, name))?;
    let asked = query.channels.iter().filter(|name| name.contains('*'));
    asked.into_iter().try_for_each(|pattern| caller.check_channel_pattern(Scope::ChannelsSubscribe, pattern))?;
    let session = StreamSession::open(&request)?;
    let (filter, asked) = (query.filter(&services)?, query.presence(&caller, is_stranger(&request, &services))?);
    let wants_deltas = parse_delta(query.delta.as_deref())?;
    if !asked.is_empty() && !patterns.is_empty() {
        return Err(ApiError::invalid("presence is for channels by their name: this stream has a pattern"));
    }
    let resume: Option<ResumeToken> = query.last_event_id.as_deref().map(str::parse).transpose()?;
    if patterns.is_empty() && resume.as_ref().is_some_and(|resume| resume.has_only_other_channels(&names)) {
        return Err(match names.first() {
            Some(name) => unknown_position(name, query.last_event_id.as_deref().unwrap_or_default()),
            None => ApiError::new(ErrorCode::UnknownPosition, "this is the id of another stream"),
        });
    }
    let mut reader = open_reader(&services)?;
    let resume_position = |name| resume.as_ref().and_then(|resume| resume.position(name));
    let is_new = names.iter().any(|name| resume_position(name).is_none());
    // A client that reconnects while Redis is away must not get an error: a browser would not reconnect after it
    let usual = if is_new || resume.is_none() { Some(query.start(&services).await?) } else { None };
    for name in &names {
        // A channel that the client did not read before begins like any other
        let start = resume_position(name).map(ReaderStart::After).or(usual).unwrap_or(ReaderStart::Now);
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
    reader.filter_all(filter.as_ref());
    if wants_deltas {
        reader.want_deltas();
    }
    let presence = query.open_presence(&services, asked, &names).await?;
    let keep_alive = services.settings.gateway.event_keep_alive;
    Ok(stream_response(MessageSource::of_many_channels(reader).with_presence(presence), session, keep_alive))
}
