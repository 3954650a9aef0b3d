//! Reads an endpoint's answer: a result, a refusal, or too much.

use std::time::{Duration, UNIX_EPOCH};

use http::{
    HeaderMap,
    header::{DATE, RETRY_AFTER},
};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use secrecy::{ExposeSecret, SecretString};
use serde_json::value::{RawValue, to_raw_value};

use common::{json, json_repair, time::Millis};

/// Maximum delay that a receiver can ask for.
pub const MAX_RETRY_AFTER: Duration = Duration::from_hours(24);

/// Maximum bytes read of an unsuccessful answer.
pub(super) const MAX_EXCERPT_BYTES: usize = 4096;

/// Maximum characters of that in a message.
const MAX_EXCERPT_CHARS: usize = 256;

/// Maximum nesting of a result: as deep as clients may send by default.
const MAX_RESULT_DEPTH: usize = 64;

/// An answer with a status of 2xx. The status alone says that the work is done, whatever follows it.
#[derive(Debug, Clone)]
pub struct PushAnswer {
    /// 200 to 299. A 202 may mean that the work is not done yet.
    pub status: u16,
    /// What the body says.
    pub result: PushResult,
    /// Its beginning for people, without secrets that were sent.
    pub excerpt: String,
}

/// What the body of a success says.
#[derive(Debug, Clone)]
pub enum PushResult {
    /// Nothing: the body is empty.
    Empty,
    /// JSON as received; other text as a JSON string.
    Json(Box<RawValue>),
    /// The body cannot be used: why, for people.
    Dropped(String),
}

/// Reads the body of a success, up to a limit in bytes.
pub(super) async fn read_result(body: Incoming, limit_bytes: usize) -> PushResult {
    match Limited::new(body, limit_bytes).collect().await {
        Ok(collected) => parse_result(&collected.to_bytes(), limit_bytes),
        Err(error) if error.is::<LengthLimitError>() => too_large(limit_bytes),
        Err(error) => PushResult::Dropped(format!("the answer broke off: {error}")),
    }
}

fn too_large(limit_bytes: usize) -> PushResult {
    PushResult::Dropped(format!("the answer has more than {limit_bytes} bytes"))
}

fn parse_result(bytes: &[u8], limit_bytes: usize) -> PushResult {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return PushResult::Empty;
    }
    if let Ok(json) = json::parse::<&RawValue>(&json_repair::repair(bytes), MAX_RESULT_DEPTH) {
        return PushResult::Json(json.to_owned());
    }
    let Ok(text) = std::str::from_utf8(bytes) else {
        return PushResult::Dropped("the answer is not UTF-8".to_owned());
    };
    match to_raw_value(text) {
        // Escapes make it longer
        Ok(json) if json.get().len() <= limit_bytes => PushResult::Json(json),
        _ => too_large(limit_bytes),
    }
}

/// Reads the start of an unsuccessful answer; errors are ignored.
pub(super) async fn read_excerpt(mut body: Incoming, into: &mut Vec<u8>) {
    while into.len() < MAX_EXCERPT_BYTES {
        let Some(Ok(frame)) = body.frame().await else { break };
        if let Some(data) = frame.data_ref() {
            into.extend_from_slice(&data[..data.len().min(MAX_EXCERPT_BYTES - into.len())]);
        }
    }
}

/// The start of an answer as text for a message, without the secrets that were sent: error pages often repeat them.
pub(super) fn format_excerpt<'a>(bytes: &[u8], hidden: impl IntoIterator<Item = &'a SecretString>) -> String {
    let mut text = String::from_utf8_lossy(bytes).into_owned();
    for secret in hidden {
        text = text.replace(secret.expose_secret(), "***");
    }
    let printable: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let words: Vec<&str> = printable.split_whitespace().collect();
    words.join(" ").chars().take(MAX_EXCERPT_CHARS).collect()
}

/// The delay that the receiver asks for: seconds, or a date by its own clock, which its `Date` shows. Only without one
/// is it compared with the time of the request. A past date is ignored.
pub(super) fn parse_retry_after(headers: &HeaderMap, sent_at: Millis) -> Option<Duration> {
    let sent_at = UNIX_EPOCH + Duration::from_millis(u64::try_from(sent_at).unwrap_or_default());
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        Duration::from_secs(text.parse().unwrap_or(u64::MAX))
    } else {
        let date = headers.get(DATE).and_then(|date| httpdate::parse_http_date(date.to_str().ok()?).ok());
        httpdate::parse_http_date(text).ok()?.duration_since(date.unwrap_or(sent_at)).ok()?
    };
    (!wait.is_zero()).then_some(wait.min(MAX_RETRY_AFTER))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(bytes: &[u8]) -> Option<String> {
        match parse_result(bytes, 40) {
            PushResult::Json(json) => Some(json.get().to_owned()),
            PushResult::Empty => None,
            PushResult::Dropped(why) => Some(why),
        }
    }

    #[test]
    fn json_is_kept_as_it_came_and_text_as_a_string() {
        for (body, expected) in [
            (&b""[..], None),
            (b" \r\n", None),
            (br#"{"a": 9007199254740993, "a":1e400}"#, Some(r#"{"a": 9007199254740993, "a":1e400}"#)),
            (b"null\n", Some("null")),
            (b"OK", Some(r#""OK""#)),
            (b"{} {}", Some(r#""{} {}""#)),
            (b"\xff\xfe", Some("the answer is not UTF-8")),
        ] {
            assert_eq!(shown(body).as_deref(), expected, "{body:?}");
        }
    }

    #[test]
    fn a_result_that_no_client_could_read_is_text() {
        let deep = format!("{}{}", "[".repeat(65), "]".repeat(65));
        let PushResult::Json(json) = parse_result(deep.as_bytes(), 1000) else { panic!("a result") };
        assert_eq!(json.get(), format!("\"{deep}\""));
    }

    #[test]
    fn text_must_be_small_as_json_too() {
        assert_eq!(shown(&[1; 10]).as_deref(), Some("the answer has more than 40 bytes"), "60 bytes of escapes");
    }

    #[test]
    fn what_is_shown_of_a_failure_is_short_printable_and_without_secrets() {
        let secret = SecretString::from("geheim".to_owned());
        assert_eq!(format_excerpt(b"a\x1b[31m\r\n  b\xff token=geheim", [&secret]), "a [31m b\u{fffd} token=***");
        assert_eq!(format_excerpt(&[b'x'; 4096], []).chars().count(), MAX_EXCERPT_CHARS);
    }

    #[test]
    fn retry_after_is_seconds_or_a_date_and_at_most_a_day() {
        let now = 784_111_777_000; // Sun, 06 Nov 1994 08:49:37 GMT
        for (text, seconds) in [
            ("120", Some(120)),
            (" 1 ", Some(1)),
            ("0", None),
            ("99999999999999999999999", Some(86_400)),
            ("86401", Some(86_400)),
            ("Sun, 06 Nov 1994 08:50:37 GMT", Some(60)),
            ("Sunday, 06-Nov-94 08:50:37 GMT", Some(60)),
            ("Sat, 06 Nov 2094 08:50:37 GMT", Some(86_400)),
            ("Sun, 06 Nov 1994 08:49:36 GMT", None),
            ("-5", None),
            ("1.5", None),
            ("soon", None),
            ("", None),
        ] {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, text.parse().expect("a value"))]);
            assert_eq!(parse_retry_after(&headers, now), seconds.map(Duration::from_secs), "{text:?}");
        }
        assert_eq!(parse_retry_after(&HeaderMap::new(), now), None);
    }

    #[test]
    fn a_date_to_retry_after_is_compared_with_the_date_of_the_answer_whatever_this_clock_says() {
        let now = 784_111_777_000 + 7_200_000; // Sun, 06 Nov 1994 10:49:37 GMT
        let header = |text: &str| text.parse().expect("a value");
        let headers = HeaderMap::from_iter([
            (RETRY_AFTER, header("Sun, 06 Nov 1994 08:50:37 GMT")),
            (DATE, header("Sun, 06 Nov 1994 08:49:37 GMT")),
        ]);
        assert_eq!(parse_retry_after(&headers, now), Some(Duration::from_mins(1)));
    }
}
