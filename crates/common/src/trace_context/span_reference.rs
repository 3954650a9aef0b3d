//! A span by its ids, and its `traceparent`.

use std::{fmt, sync::OnceLock};

use uuid::Uuid;

/// Length of a `traceparent` of version 00.
const TRACEPARENT_BYTES: usize = 55;
const SAMPLED: u8 = 1;
/// The flags that version 00 and level 2 define: sampled and random.
const KNOWN_FLAGS: u8 = 3;

/// A span of a trace: what a `traceparent` names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpanReference {
    /// The trace.
    pub trace_id: u128,
    /// The span in it.
    pub span_id: u64,
    /// The flags.
    pub flags: u8,
}

impl SpanReference {
    /// Parses a `traceparent`. One of a later version is read as its beginning, which has this form.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = text.as_bytes();
        if bytes.len() < TRACEPARENT_BYTES || [2, 35, 52].iter().any(|at| bytes[*at] != b'-') {
            return None;
        }
        let version = parse_hex(&bytes[..2])?;
        let is_as_long_as_its_version = if version == 0 {
            bytes.len() == TRACEPARENT_BYTES
        } else {
            bytes.get(TRACEPARENT_BYTES).is_none_or(|next| *next == b'-')
        };
        let trace_id = parse_hex(&bytes[3..35])?;
        let span_id = u64::try_from(parse_hex(&bytes[36..52])?).ok()?;
        let flags = u8::try_from(parse_hex(&bytes[53..55])?).ok()?;
        let is_valid = version != 0xff && is_as_long_as_its_version && trace_id != 0 && span_id != 0;
        is_valid.then_some(Self { trace_id, span_id, flags: flags & KNOWN_FLAGS })
    }

    /// Whether the trace is recorded.
    #[must_use]
    pub fn is_sampled(self) -> bool {
        self.flags & SAMPLED != 0
    }

    /// The span where a trace begins that is not recorded and has the id of what it is about.
    pub(super) fn named_after(id: Uuid) -> Self {
        let (_, span_id) = id.as_u64_pair();
        Self { trace_id: id.as_u128(), span_id, flags: 0 }
    }
}

/// As a `traceparent`.
impl fmt::Display for SpanReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Traceparent::new(*self).as_str())
    }
}

/// A span, and its `traceparent`. Most are read as a span alone: the text is written when somebody asks for it, and without
/// `format!`, because every job of a recorded request has one.
#[derive(Clone)]
pub(super) struct Traceparent {
    pub(super) span: SpanReference,
    text: OnceLock<[u8; TRACEPARENT_BYTES]>,
}

impl Traceparent {
    pub(super) fn new(span: SpanReference) -> Self {
        Self { span, text: OnceLock::new() }
    }

    pub(super) fn as_str(&self) -> &str {
        let text = self.text.get_or_init(|| {
            let mut text = *b"00-................................-................-..";
            write_hex(&mut text[3..35], self.span.trace_id);
            write_hex(&mut text[36..52], self.span.span_id.into());
            write_hex(&mut text[53..], self.span.flags.into());
            text
        });
        std::str::from_utf8(text).unwrap_or_default()
    }
}

impl PartialEq for Traceparent {
    fn eq(&self, other: &Self) -> bool {
        self.span == other.span
    }
}

impl Eq for Traceparent {}

impl fmt::Debug for Traceparent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Fills the digits with the lowest ones of a number.
fn write_hex(digits: &mut [u8], mut number: u128) {
    for digit in digits.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(number & 15) as usize];
        number >>= 4;
    }
}

/// The number in lower case hex digits.
fn parse_hex(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0_u128, |number, digit| {
        let value = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(number << 4 | u128::from(value))
    })
}
