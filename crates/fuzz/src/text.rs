//! Texts with a grammar of their own, and JSON itself.

use common::{
    channel_pattern::ChannelPattern,
    id::{EntryId, JobId, WorkflowId},
    json::{self, NoDuplicateMembers, Object},
    json_repair,
    name::{ChannelName, HostPattern, JobType, Origin, QueueName, WorkerId},
    time,
};
use model::{
    message::{Position, ResumeToken, check_content_type, cloud_event, essence, is_json},
    url_template::UrlTemplate,
};
use serde_json::value::RawValue;

use crate::{DEPTH_LIMIT, NOW};

/// `PATTERN<line feed>CHANNEL`. A pattern without a star matches itself only.
pub(crate) fn channel_pattern(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (pattern, channel) = text.split_once('\n').unwrap_or((text, "orders.new"));
    let (Ok(parsed), Ok(channel)) = (pattern.parse::<ChannelPattern>(), channel.parse::<ChannelName>()) else { return };
    let is_match = parsed.matches(&channel);
    if !pattern.contains('*') {
        assert_eq!(is_match, pattern == channel.as_str());
    }
}

pub(crate) fn json_members(data: &[u8]) {
    let _ = json::parse::<NoDuplicateMembers>(data, DEPTH_LIMIT);
    if let Ok(object) = common::json_members::parse_request::<Object>(data, DEPTH_LIMIT) {
        let _ = object.check_names(&["type", "args", "queue"]);
        for (name, value) in object.iter() {
            // A null counts as absent
            assert!(object.get(name).is_some() || value.get() == "null", "{name:?} {}", value.get());
        }
    }
    if let Ok(value) = json::parse::<&RawValue>(data, DEPTH_LIMIT) {
        let line = json::escape_line_ends(value.get());
        assert!(serde_json::from_str::<&RawValue>(&line).is_ok(), "{line}");
    }
}

/// Valid JSON stays as it is, what is repaired is UTF-8, and repairing again changes nothing.
pub(crate) fn json_repair(data: &[u8]) {
    let repaired = json_repair::repair(data);
    assert!(std::str::from_utf8(&repaired).is_ok());
    assert_eq!(json_repair::repair(&repaired), repaired);
    // Into values: what reads over a text does not notice a lone surrogate in it
    if serde_json::from_slice::<serde_json::Value>(data).is_ok() {
        assert_eq!(repaired, data);
    }
}

/// A content type that is accepted is printable, and is stored and sent as it is.
pub(crate) fn media_type(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if check_content_type(text).is_ok() {
        assert!(text.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{text:?}");
    }
    let kind = essence(text);
    assert!(text.contains(kind));
    let _ = (is_json(text), cloud_event::is_structured(text), cloud_event::is_cloud_events(kind));
}

/// What is accepted as a name shows itself again as it was.
pub(crate) fn names(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    assert!(text.parse::<QueueName>().is_ok_and(|name| name.as_str() == text) || text.parse::<QueueName>().is_err());
    assert!(
        text.parse::<ChannelName>().is_ok_and(|name| name.as_str() == text) || text.parse::<ChannelName>().is_err()
    );
    if let Ok(job_type) = text.parse::<JobType>() {
        assert_eq!(job_type.as_str(), text);
    }
    if let Ok(worker) = text.parse::<WorkerId>() {
        assert_eq!(worker.as_str(), text);
    }
    let _ = (text.parse::<HostPattern>(), text.parse::<Origin>());
    if let Ok(id) = text.parse::<JobId>() {
        assert_eq!(id.to_string().parse(), Ok(id));
        let _ = (id.address(), id.queue_tag(), id.salt(), id.milliseconds());
    }
    let _ = text.parse::<WorkflowId>();
    if let Ok(entry) = text.parse::<EntryId>() {
        assert_eq!(entry.to_string().parse::<EntryId>().ok(), Some(entry));
    }
}

/// What a client sends as `Last-Event-ID`, `after` and `since`.
pub(crate) fn resume_position(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(position) = text.parse::<Position>() {
        assert_eq!(position.to_string().parse(), Ok(position));
        let _ = position.next();
    }
    if let Ok(token) = text.parse::<ResumeToken>() {
        let channel: ChannelName = "orders.new".parse().expect("a name");
        let _ = (token.position(&channel), token.has_only_other_channels(&[channel]));
    }
    if let Ok(cursor) = text.parse::<store::events::EventCursor>() {
        assert_eq!(cursor.to_string().parse(), Ok(cursor));
    }
}

pub(crate) fn time(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(parsed) = time::parse_time(text, NOW) {
        let shown = time::format(parsed.at);
        assert_eq!(time::parse_time(&shown, NOW).map(|again| again.at), Ok(parsed.at), "{text:?} {shown:?}");
    }
    if let Ok(length) = time::parse_duration(text) {
        let shown = time::format_duration(length);
        let again = time::parse_duration(&shown).expect("a duration is shown as one");
        assert_eq!(again.as_millis(), length.as_millis(), "{text:?} {shown:?}");
    }
    let _ = time::is_rfc_3339(text);
}

/// Whatever the values are, scheme, host and port are those of the template.
pub(crate) fn url_template(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (template, value) = text.split_once('\n').unwrap_or((text, "x"));
    let Ok(template) = UrlTemplate::parse(template, &["queue", "type", "id"]) else { return };
    let Ok(url) = template.expand(&[("queue", value), ("type", "email.send"), ("id", "7")]) else { return };
    let origin = template.origin();
    assert!(url.to_string().starts_with(origin), "{url} {origin}");
    let authority = origin.split_once("://").expect("an origin has a scheme").1;
    assert_eq!(url.authority().map(ToString::to_string).as_deref(), Some(authority), "{url}");
    let _ = (template.host(), template.is_https());
}
