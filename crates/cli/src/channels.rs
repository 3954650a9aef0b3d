//! `galley publish` and `galley subscribe`.

use std::fmt::Write;

use clap::Args;
use serde_json::Value;
use uuid::Uuid;

use crate::{
    event_stream::{EventStream, ServerEvent},
    failure::CliResult,
    gateway_client::{GatewayCall, PathWithQuery, escaped},
    input,
    session::Session,
    table::{member, shown},
};

#[derive(Debug, Args)]
pub(crate) struct PublishArgs {
    channel: String,
    /// The message; `-` reads it from standard input, @file from a file.
    message: String,
    /// What it is. Else JSON if it is a JSON object or array, text otherwise.
    #[arg(long, value_name = "TYPE")]
    content_type: Option<String>,
    /// An attribute of a CloudEvent, such as type=order.paid. May be repeated.
    #[arg(long = "attribute", value_name = "NAME=VALUE", value_parser = input::pair)]
    attributes: Vec<(String, String)>,
    /// Repeating the command with the same key publishes once.
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct SubscribeArgs {
    /// Channels, or patterns such as orders.*.
    #[arg(required = true)]
    channels: Vec<String>,
    /// Begin at this time: RFC 3339, or -PT1H. Else now.
    #[arg(long, allow_hyphen_values = true, conflicts_with = "after")]
    since: Option<String>,
    /// Continue behind this id, which an earlier command printed at its end.
    #[arg(long, value_name = "ID")]
    after: Option<String>,
    /// Only messages that match, such as '{"attributes":{"type":"order.paid"}}'.
    #[arg(long, value_name = "JSON")]
    filter: Option<String>,
    /// End after this number of messages.
    #[arg(long, short = 'n', value_name = "N")]
    count: Option<u64>,
    /// Print the messages alone.
    #[arg(long, conflicts_with = "json")]
    raw: bool,
}

impl PublishArgs {
    pub(crate) async fn run(self, session: &Session) -> CliResult {
        let body = input::bytes(&self.message)?;
        let content_type = self.content_type.unwrap_or_else(|| guessed_type(&body).to_owned());
        let key = self.idempotency_key.unwrap_or_else(|| Uuid::new_v4().to_string());
        let path = format!("/v1/channels/{}/messages", escaped(&self.channel));
        let mut call = GatewayCall::post(path).bytes(&content_type, body).header("Idempotency-Key", key);
        for (name, value) in cloud_event_headers(self.attributes) {
            call = call.header(name, value);
        }
        session.show(call, |answer, terminal| terminal.line(&member(answer, "id"))).await.map(drop)
    }
}

/// JSON or text; other bytes are just bytes.
fn guessed_type(body: &[u8]) -> &'static str {
    let first = body.iter().find(|byte| !byte.is_ascii_whitespace());
    let is_json = matches!(first, Some(b'{' | b'[')) && serde_json::from_slice::<serde::de::IgnoredAny>(body).is_ok();
    match std::str::from_utf8(body) {
        Ok(_) if is_json => "application/json",
        Ok(_) => "text/plain",
        Err(_) => "application/octet-stream",
    }
}

/// The headers of a CloudEvent in binary mode. What every event needs and is not given is made up.
fn cloud_event_headers(attributes: Vec<(String, String)>) -> Vec<(String, String)> {
    if attributes.is_empty() {
        return Vec::new();
    }
    let has = |name: &str| attributes.iter().any(|(given, _)| given == name);
    let needed = [
        ("specversion", "1.0".to_owned()),
        ("id", Uuid::new_v4().to_string()),
        ("source", "/galley/cli".to_owned()),
        ("type", "message".to_owned()),
    ];
    let missing = needed.into_iter().filter(|(name, _)| !has(name)).map(|(name, value)| (name.to_owned(), value));
    let all = missing.collect::<Vec<_>>().into_iter().chain(attributes);
    all.map(|(name, value)| (format!("ce-{name}"), escaped_header(&value))).collect()
}

/// The value of a header of a CloudEvent: percent-encoded where it is not plain ASCII.
fn escaped_header(value: &str) -> String {
    let mut escaped = String::new();
    for byte in value.bytes() {
        match byte {
            b'"' | b'%' | 0..=b' ' | 0x7f.. => {
                let _ = write!(escaped, "%{byte:02X}");
            }
            plain => escaped.push(char::from(plain)),
        }
    }
    escaped
}

impl SubscribeArgs {
    pub(crate) async fn run(self, session: &Session) -> CliResult {
        let path = match self.channels.as_slice() {
            [channel] if !channel.contains('*') => {
                PathWithQuery::new(format!("/v1/channels/{}/stream", escaped(channel)))
            }
            channels => channels
                .iter()
                .fold(PathWithQuery::new("/v1/stream"), |path, channel| path.with("channel", Some(channel))),
        };
        let mut stream =
            EventStream::new(path.with("since", self.since.as_ref()).with("filter", self.filter.as_ref()).text())
                .after(self.after.clone());
        let mut left = self.count.unwrap_or(u64::MAX);
        let ended = tokio::select! {
            ended = self.follow(session, &mut stream, &mut left) => ended,
            _ = tokio::signal::ctrl_c() => Ok(()),
        };
        if !stream.last_id().is_empty() {
            session.terminal.note(&format!("continue with --after {}", shown(&Value::from(stream.last_id()))));
        }
        ended
    }

    async fn follow(&self, session: &Session, stream: &mut EventStream, left: &mut u64) -> CliResult {
        while *left > 0 {
            let event = stream.next(session).await?;
            if event.name == "message" {
                *left -= 1;
            }
            self.print(session, &event)?;
        }
        Ok(())
    }

    fn print(&self, session: &Session, event: &ServerEvent) -> CliResult {
        let terminal = session.terminal;
        match (event.name.as_str(), serde_json::from_str::<Value>(&event.data)) {
            ("message", _) if terminal.json => terminal.json_bytes(event.data.as_bytes()),
            ("message", Ok(message)) if self.raw || terminal.quiet => terminal.line(&content(&message)),
            ("message", Ok(message)) => {
                let parts = [member(&message, "time"), member(&message, "channel"), member(&message, "id")];
                terminal.line(&format!("{}  {}", parts.join("  "), content(&message)))
            }
            // Not silent even with --quiet: messages are missing
            ("gap" | "left_out" | "error", _) if terminal.json => {
                terminal.json_bytes(format!("{{\"{}\":{}}}", event.name, event.data).as_bytes())
            }
            ("gap", Ok(gap)) => {
                let count = gap["count"].as_u64().map_or_else(|| "some".to_owned(), |count| count.to_string());
                let of = gap["channel"].as_str().map(|name| format!(" of {}", shown(&Value::from(name))));
                let of = of.unwrap_or_default();
                let (from, to) = (member(&gap, "from"), member(&gap, "to"));
                eprintln!("gap: {count} messages{of} are missing, between {from} and {to}");
                Ok(())
            }
            ("begin" | "skipped", _) => Ok(()),
            (name, _) => {
                eprintln!("{}: {}", shown(&Value::from(name)), shown(&Value::from(event.data.as_str())));
                Ok(())
            }
        }
    }
}

/// The body of a message for people.
fn content(message: &Value) -> String {
    match (message.get("data"), message.get("data_base64")) {
        (Some(data), _) => shown(data),
        (None, Some(bytes)) => format!("base64 {}", shown(bytes)),
        (None, None) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_what_it_looks_like() {
        let types = [&b"{\"a\":1}"[..], b"dinner", b"{a}", b"7", b"\xff"].map(guessed_type);
        let plain = "text/plain";
        assert_eq!(types, ["application/json", plain, plain, plain, "application/octet-stream"]);
    }

    #[test]
    fn an_event_has_what_every_event_needs() {
        let headers = cloud_event_headers(vec![("type".to_owned(), "order paid é".to_owned())]);
        let names: Vec<&str> = headers.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["ce-specversion", "ce-id", "ce-source", "ce-type"]);
        assert_eq!(headers[3].1, "order%20paid%20%C3%A9");
    }
}
