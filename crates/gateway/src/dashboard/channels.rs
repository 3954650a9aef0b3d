//! The pages of channels: what each holds, its messages as they come, and a form to publish.

use actix_web::{HttpRequest, web, web::Bytes};
use askama::Template;
use common::{json::ObjectWriter, name::ChannelName, time};
use model::{
    access::Scope,
    message::{NewMessage, Position},
};
use serde_json::Value;
use store::channels::{ChannelMember, ChannelReader, ReaderEvent, ReaderStart};

use super::{
    page::{Page, redirect},
    plain::encode,
    session::Form,
    shown_value::ShownValue,
};
use crate::{
    auth::Caller,
    error::ApiError,
    request_check::query_pairs,
    routes::{ApiResult, open_reader},
    services::Services,
    sse::{self, AwaitedSse, SseFrames},
};

/// Channels on a page.
const PAGE_SIZE: usize = 50;
/// Members on the page of a channel.
const SHOWN_MEMBERS: usize = 50;
/// Messages that a page begins with.
const SHOWN_MESSAGES: u64 = 50;

#[derive(Template)]
#[template(path = "channels.html")]
struct ChannelsPage {
    page: Page,
    rows: Vec<ChannelRow>,
    next: Option<String>,
}

struct ChannelRow {
    name: ChannelName,
    length: u64,
    bytes: u64,
    per_minute: u64,
    readers: usize,
    last_at: Option<i64>,
}

#[derive(Template)]
#[template(path = "channel.html")]
struct OneChannelPage {
    page: Page,
    name: ChannelName,
    readers: usize,
    /// The first of them by id.
    members: Vec<MemberRow>,
    member_count: usize,
    messages: Vec<String>,
}

struct MemberRow {
    id: String,
    since: i64,
    info: ShownValue,
}

impl OneChannelPage {
    fn other_members(&self) -> usize {
        self.member_count - self.members.len()
    }
}

#[derive(Template)]
#[template(path = "message_row.html")]
struct MessageRow {
    id: String,
    at: String,
    kind: String,
    body: ShownValue,
}

impl MessageRow {
    /// A message as clients see it.
    fn of(json: &str) -> Self {
        let message: Value = serde_json::from_str(json).unwrap_or_default();
        let text = |name: &str| message[name].as_str().unwrap_or_default().to_owned();
        let body = ["data", "text", "data_base64", "base64", "body"].into_iter().find_map(|name| message.get(name));
        let body = match body {
            Some(Value::String(text)) => ShownValue::of_text(text.clone()),
            Some(other) => ShownValue::of(other),
            None => ShownValue::of(&message),
        };
        Self { id: text("id"), at: text("time"), kind: text("content_type"), body }
    }

    /// The time without its day, which the hover text has.
    fn clock(&self) -> &str {
        self.at.get(11..19).unwrap_or(&self.at)
    }

    fn html(json: &str) -> String {
        Self::of(json).render().unwrap_or_default()
    }
}

pub(crate) async fn page(request: HttpRequest, caller: Caller, services: web::Data<Services>) -> ApiResult {
    let pairs = query_pairs(request.query_string());
    let value = |name: &str| pairs.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value.as_str());
    if !value("name").trim().is_empty() {
        let name: ChannelName = value("name").trim().parse()?;
        return Ok(redirect(&format!("/ui/channels/{}", encode(name.as_str())), "", ""));
    }
    let after: Option<ChannelName> = value("after").parse().ok();
    let mut names = if caller.has_every_channel() {
        services.channels.list_channels(after.as_ref(), PAGE_SIZE + 1).await?
    } else {
        let mut names = services.channels.list_channels(after.as_ref(), usize::MAX).await?;
        names.retain(|name| caller.has_channel(name));
        names
    };
    let has_more = names.len() > PAGE_SIZE;
    names.truncate(PAGE_SIZE);
    let next = names.last().filter(|_| has_more).map(ToString::to_string);
    let readers = services.channel_hub.count_readers(&names).await?;
    let mut rows = Vec::with_capacity(names.len());
    for (name, readers) in names.into_iter().zip(readers) {
        if let Some(info) = services.channels.channel_info(&name).await? {
            let (length, bytes, per_minute, last_at) =
                (info.length, info.bytes, info.per_minute, info.last_published_at);
            rows.push(ChannelRow { name, length, bytes, per_minute, readers, last_at });
        }
    }
    let page = Page::open(&request, "/ui/channels").await;
    let template = ChannelsPage { page, rows, next };
    template.page.render(&template)
}

/// A channel, also one that has no message yet.
pub(crate) async fn show(request: HttpRequest, services: web::Data<Services>, name: web::Path<String>) -> ApiResult {
    let name: ChannelName = name.parse()?;
    let mut messages = Vec::new();
    if let Some(head) = services.channels.channel_head(&name).await? {
        let after = Position { sequence: head.sequence.saturating_sub(SHOWN_MESSAGES), ..head };
        let after = if head.sequence < SHOWN_MESSAGES { Position::START } else { after };
        let max = usize::try_from(SHOWN_MESSAGES).unwrap_or(usize::MAX);
        let found = services.channels.read_channel_page(&name, after, max).await?;
        messages = found.messages.iter().rev().map(|message| MessageRow::html(&message.to_json(&name))).collect();
    }
    let readers = services.channel_hub.count_readers(std::slice::from_ref(&name)).await?.iter().sum();
    let all = services.presence.members(&name).await?;
    let member_count = all.len();
    let row = |member: ChannelMember| MemberRow {
        id: member.id.to_string(),
        since: member.since,
        info: ShownValue::of_text(member.info.as_stored().to_owned()),
    };
    let members = all.into_iter().take(SHOWN_MEMBERS).map(row).collect();
    let page = Page::open(&request, "/ui/channels").await;
    let template = OneChannelPage { page, name, readers, members, member_count, messages };
    template.page.render(&template)
}

pub(crate) async fn publish(
    caller: Caller,
    services: web::Data<Services>,
    name: web::Path<String>,
    form: Form,
) -> ApiResult {
    let name: ChannelName = name.parse()?;
    caller.check_channel(Scope::ChannelsPublish, &name)?;
    let kind = form.given("content_type");
    let kind = kind.map(|kind| model::message::check_content_type(kind).map(|()| kind)).transpose()?;
    let body = form.get("body").as_bytes();
    let message = NewMessage { content_type: kind.map(Into::into), ..NewMessage::plain(body) };
    let published = services.publish(&name, message, None).await?;
    let position = published.position.to_string();
    Ok(redirect(&format!("/ui/channels/{}", encode(name.as_str())), "message_published", &position))
}

/// Follows the messages of a channel.
pub(super) struct ChannelSource(ChannelReader);

impl ChannelSource {
    pub(super) async fn open(services: &Services, name: &ChannelName) -> Result<Self, ApiError> {
        let mut reader = open_reader(services)?;
        reader.add_channel(name, ReaderStart::Now).await??;
        Ok(Self(reader))
    }
}

impl AwaitedSse for ChannelSource {
    fn first_id(&self) -> String {
        "0".to_owned()
    }

    async fn next(&mut self) -> SseFrames {
        let html = match self.0.next().await {
            ReaderEvent::Message(message) => MessageRow::html(message.json()),
            ReaderEvent::Stopped => return SseFrames::Last(Bytes::new()),
            ReaderEvent::Gap { .. } | ReaderEvent::Skipped { .. } | ReaderEvent::ChannelSkipped(_) => {
                return SseFrames::More(Bytes::new());
            }
        };
        let mut data = ObjectWriter::default();
        data.text("html", &html).text("at", &time::format(store::local_now()));
        let mut frame = String::new();
        sse::push_event(&mut frame, None, "append", &data.finish());
        SseFrames::More(frame.into())
    }
}
