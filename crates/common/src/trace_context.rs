//! W3C Trace Context and Baggage: which trace something belongs to, as it came from outside and is passed on.
//!
//! A value is valid: bad input is dropped where it comes in, as the two specifications ask, and never refused. A bad
//! `traceparent` drops `tracestate` too; `baggage` stands alone. It is passed on also where no spans are exported.

mod span_reference;

use std::sync::Arc;

use uuid::Uuid;

pub use self::span_reference::SpanReference;
use self::span_reference::Traceparent;
use crate::id::JobId;

/// Longest `tracestate` that is passed on, in bytes. Of a longer one whole members are dropped.
pub const MAX_TRACESTATE_BYTES: usize = 512;
/// Longest `baggage` that is passed on, in bytes. Of a longer one whole members are dropped.
pub const MAX_BAGGAGE_BYTES: usize = 8192;
/// Most members of a `tracestate`: one with more is not valid.
const MAX_TRACESTATE_MEMBERS: usize = 32;
/// Members of a `tracestate` that are longer go first when it is too long.
const LARGE_TRACESTATE_MEMBER_BYTES: usize = 128;
/// Most members of `baggage` that are passed on.
const MAX_BAGGAGE_MEMBERS: usize = 64;
/// What is stored for the `traceparent` of a trace that is named after its job; see [`TraceContext::named_after`].
const NAMED_AFTER_JOB: &str = "-";

/// The trace that something belongs to, with its state and its baggage. Cheap to clone; empty for most things.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TraceContext(Option<Arc<ContextParts>>);

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct ContextParts {
    traceparent: Option<Traceparent>,
    tracestate: Option<String>,
    baggage: Option<String>,
    /// Whether the trace began in this process and nobody records it: then nobody knows its id yet.
    is_new_and_unrecorded: bool,
}

impl TraceContext {
    /// What the three headers say, each joined with commas if it came more than once.
    #[must_use]
    pub fn new(traceparent: Option<&str>, tracestate: Option<&str>, baggage: Option<&str>) -> Self {
        let span = traceparent.and_then(SpanReference::parse);
        Self::from_parts(ContextParts {
            tracestate: span.and(tracestate).and_then(bounded_tracestate),
            traceparent: span.map(Traceparent::new),
            baggage: baggage.and_then(bounded_baggage),
            is_new_and_unrecorded: false,
        })
    }

    fn from_parts(parts: ContextParts) -> Self {
        let is_empty = parts.traceparent.is_none() && parts.baggage.is_none();
        Self((!is_empty).then(|| Arc::new(parts)))
    }

    /// As it was stored: a `traceparent`, and what [`Self::stored_rest`] returned.
    #[must_use]
    pub fn from_stored(traceparent: Option<&str>, rest: Option<&str>) -> Self {
        if traceparent.is_none() && rest.is_none() {
            return Self::default();
        }
        let (tracestate, baggage) = rest.map_or(("", ""), |rest| rest.split_once('\n').unwrap_or((rest, "")));
        let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        let traceparent = traceparent.and_then(SpanReference::parse).map(Traceparent::new);
        let (tracestate, baggage) = (some(tracestate), some(baggage));
        Self::from_parts(ContextParts { traceparent, tracestate, baggage, is_new_and_unrecorded: false })
    }

    /// As it was stored in the stream entry of an ordinary job: what [`Self::stored_with_new_job`] and
    /// [`Self::stored_rest`] returned.
    #[must_use]
    pub fn from_entry(id: JobId, traceparent: Option<&str>, rest: Option<&str>) -> Self {
        let named_after_job = Some(NAMED_AFTER_JOB).filter(|_| id.has_salt_mark());
        Self::from_job(id, traceparent.or(named_after_job), rest)
    }

    /// As it was stored with a job: what [`Self::stored_with_job`] and [`Self::stored_rest`] returned.
    #[must_use]
    pub fn from_job(id: JobId, traceparent: Option<&str>, rest: Option<&str>) -> Self {
        let stored = Self::from_stored(traceparent, rest);
        if traceparent == Some(NAMED_AFTER_JOB) {
            stored.with_span(SpanReference::named_after(id.into()))
        } else {
            stored
        }
    }

    /// What is stored with a job for the `traceparent`: one byte if the trace is named after the job.
    #[must_use]
    pub fn stored_with_job(&self, id: JobId) -> Option<&str> {
        let is_named_after_job = self.span() == Some(SpanReference::named_after(id.into()));
        if is_named_after_job { Some(NAMED_AFTER_JOB) } else { self.traceparent() }
    }

    /// What is stored for the `traceparent` of a job that has no id yet: nothing if its trace will be [`Self::named_after`]
    /// it, which a mark in its id says.
    #[must_use]
    pub fn stored_with_new_job(&self) -> Option<&str> {
        self.traceparent().filter(|_| !self.is_new_and_unrecorded())
    }

    /// The same, unless the trace is new and nobody records it: then it gets the id of the job or workflow that it is stored
    /// with. So the id need not be stored: most traces are not recorded, and a `traceparent` takes as much as a small job.
    #[must_use]
    pub fn named_after(self, id: impl Into<Uuid>) -> Self {
        if self.is_new_and_unrecorded() { self.with_span(SpanReference::named_after(id.into())) } else { self }
    }

    /// Whether the trace began in this process and nobody records it.
    #[must_use]
    pub fn is_new_and_unrecorded(&self) -> bool {
        self.0.as_ref().is_some_and(|parts| parts.is_new_and_unrecorded)
    }

    /// `<tracestate>\n<baggage>`, to be stored beside the `traceparent`; none if there is neither.
    #[must_use]
    pub fn stored_rest(&self) -> Option<String> {
        match (self.tracestate(), self.baggage()) {
            (None, None) => None,
            (tracestate, baggage) => {
                Some(format!("{}\n{}", tracestate.unwrap_or_default(), baggage.unwrap_or_default()))
            }
        }
    }

    /// The `traceparent`.
    #[must_use]
    pub fn traceparent(&self) -> Option<&str> {
        self.0.as_ref()?.traceparent.as_ref().map(Traceparent::as_str)
    }

    /// The `tracestate`.
    #[must_use]
    pub fn tracestate(&self) -> Option<&str> {
        self.0.as_ref()?.tracestate.as_deref()
    }

    /// The `baggage`.
    #[must_use]
    pub fn baggage(&self) -> Option<&str> {
        self.0.as_ref()?.baggage.as_deref()
    }

    /// Whether there is nothing to pass on.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// The span that it names.
    #[must_use]
    pub fn span(&self) -> Option<SpanReference> {
        self.0.as_ref()?.traceparent.as_ref().map(|traceparent| traceparent.span)
    }

    /// What a span of this context passes on: the same with the span as parent.
    #[must_use]
    pub fn with_span(&self, span: SpanReference) -> Self {
        let parts = self.0.as_deref();
        // A tracestate is about the trace, and a span of another trace has none
        let same_trace = parts.filter(|_| self.span().is_some_and(|own| own.trace_id == span.trace_id));
        Self::from_parts(ContextParts {
            traceparent: Some(Traceparent::new(span)),
            tracestate: same_trace.and_then(|parts| parts.tracestate.clone()),
            baggage: parts.and_then(|parts| parts.baggage.clone()),
            is_new_and_unrecorded: same_trace.is_some_and(|parts| parts.is_new_and_unrecorded) && !span.is_sampled(),
        })
    }

    /// What a span passes on with which a trace began here.
    #[must_use]
    pub fn with_first_span(&self, span: SpanReference) -> Self {
        let parts = self.with_span(span).0.map(Arc::unwrap_or_clone).unwrap_or_default();
        Self::from_parts(ContextParts { is_new_and_unrecorded: !span.is_sampled(), ..parts })
    }

    /// This one, or the other if this one names no trace.
    #[must_use]
    pub fn or(self, other: impl FnOnce() -> Self) -> Self {
        if self.traceparent().is_some() { self } else { other() }
    }

    /// The headers that pass it on.
    pub fn headers(&self) -> impl Iterator<Item = (&str, &str)> {
        let headers =
            [("traceparent", self.traceparent()), ("tracestate", self.tracestate()), ("baggage", self.baggage())];
        headers.into_iter().filter_map(|(name, value)| Some((name, value?)))
    }

    /// The variables that pass it on to a program.
    pub fn environment(&self) -> impl Iterator<Item = (&'static str, String)> {
        let variables =
            [("TRACEPARENT", self.traceparent()), ("TRACESTATE", self.tracestate()), ("BAGGAGE", self.baggage())];
        variables.into_iter().filter_map(|(name, value)| Some((name, value?.to_owned())))
    }
}

/// A `tracestate` with at most [`MAX_TRACESTATE_BYTES`]; none if it is not valid.
fn bounded_tracestate(text: &str) -> Option<String> {
    let is_space = |c: char| c == ' ' || c == '\t';
    let mut members: Vec<&str> =
        text.split(',').map(|member| member.trim_matches(is_space)).filter(|member| !member.is_empty()).collect();
    if members.len() > MAX_TRACESTATE_MEMBERS || !members.iter().all(|member| is_tracestate_member(member)) {
        return None;
    }
    let keys: std::collections::BTreeSet<&str> = members.iter().filter_map(|member| member.split('=').next()).collect();
    if keys.len() != members.len() {
        return None;
    }
    let length = |members: &[&str]| members.iter().map(|member| member.len() + 1).sum::<usize>().saturating_sub(1);
    // Large members first, the last of them before the others; then from the end
    while length(&members) > MAX_TRACESTATE_BYTES {
        let large = members.iter().rposition(|member| member.len() > LARGE_TRACESTATE_MEMBER_BYTES);
        members.remove(large.unwrap_or(members.len() - 1));
    }
    Some(members.join(",")).filter(|text| !text.is_empty())
}

/// `key=value` in the characters and lengths of the specification.
fn is_tracestate_member(member: &str) -> bool {
    let Some((key, value)) = member.split_once('=') else { return false };
    let is_key_byte = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-*/@".contains(&b);
    let is_key = (1..=256).contains(&key.len())
        && key.bytes().all(is_key_byte)
        && key.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        && key.bytes().filter(|b| *b == b'@').count() <= 1;
    is_key
        && (1..=256).contains(&value.len())
        && value.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b'=' && b != b',')
}

/// The members of `baggage` that are valid and fit, in their order; none if none is.
fn bounded_baggage(text: &str) -> Option<String> {
    let mut kept = String::new();
    let members = text.split(',').map(|member| member.trim_matches([' ', '\t'])).filter(|member| !member.is_empty());
    for member in members.filter(|member| is_baggage_member(member)).take(MAX_BAGGAGE_MEMBERS) {
        if kept.len() + member.len() + usize::from(!kept.is_empty()) <= MAX_BAGGAGE_BYTES {
            kept.push_str(if kept.is_empty() { "" } else { "," });
            kept.push_str(member);
        }
    }
    Some(kept).filter(|text| !text.is_empty())
}

/// `key=value` with properties after semicolons, in the characters of the specification.
fn is_baggage_member(member: &str) -> bool {
    let (pair, _) = member.split_once(';').unwrap_or((member, ""));
    let Some((key, value)) = pair.split_once('=') else { return false };
    let is_token_byte = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    let (key, value) = (key.trim_matches([' ', '\t']), value.trim_matches([' ', '\t']));
    let is_value_byte = |b: u8| b.is_ascii_graphic() && !b"\",;\\".contains(&b);
    !key.is_empty()
        && key.bytes().all(is_token_byte)
        && value.bytes().all(is_value_byte)
        && member.bytes().all(|b| b.is_ascii_graphic() || b == b' ' || b == b'\t')
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn only_a_well_formed_traceparent_is_used() {
        let later = [format!("cc{}", &GOOD[2..]), format!("cc{}-and-more", &GOOD[2..])];
        for good in [GOOD, &later[0], &later[1]] {
            assert_eq!(TraceContext::new(Some(good), None, None).traceparent(), Some(GOOD), "{good}");
        }
        let unknown_flags = TraceContext::new(Some(&format!("{}ff", &GOOD[..53])), None, None);
        assert_eq!(unknown_flags.traceparent(), Some(&*format!("{}03", &GOOD[..53])));
        let upper = GOOD.to_uppercase();
        for bad in [
            "",
            "00-x-y-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01.more",
            "00_0af7651916cd43dd8448eb211c80319c_b7ad6b7169203331_01",
            &upper,
        ] {
            let context = TraceContext::new(Some(bad), Some("a=1"), Some("k=v"));
            assert_eq!((context.traceparent(), context.tracestate()), (None, None), "{bad}");
            assert_eq!(context.baggage(), Some("k=v"), "it stands alone");
        }
    }

    #[test]
    fn a_tracestate_is_bounded_and_a_bad_one_dropped_without_the_trace() {
        let state = |text: &str| {
            let context = TraceContext::new(Some(GOOD), Some(text), None);
            assert_eq!(context.traceparent(), Some(GOOD));
            context.tracestate().map(ToOwned::to_owned)
        };
        assert_eq!(state("a=1, b@c=2 ,,rojo=x y").as_deref(), Some("a=1,b@c=2,rojo=x y"));
        let many: Vec<String> = (0..33).map(|n| format!("k{n}=1")).collect();
        for bad in ["", "a", "A=1", "a=", "a=1=2", "a=1,a=2", "a=\u{e9}", &many.join(",")] {
            assert_eq!(state(bad), None, "{bad}");
        }
        let large = format!("large={}", "x".repeat(200));
        let members: Vec<String> = (0..5).map(|n| format!("k{n}={}", "y".repeat(90))).collect();
        let kept = state(&format!("{large},{}", members.join(","))).expect("some fit");
        assert_eq!(kept, members.join(","), "the large one goes first");
        let members: Vec<String> = (0..9).map(|n| format!("k{n}={}", "y".repeat(90))).collect();
        let kept = state(&members.join(",")).expect("some fit");
        assert_eq!(kept, members[..5].join(","), "then those at the end");
        assert!(kept.len() <= MAX_TRACESTATE_BYTES);
    }

    #[test]
    fn baggage_is_bounded_and_its_bad_members_dropped() {
        let baggage = |text: &str| TraceContext::new(None, None, Some(text)).baggage().map(ToOwned::to_owned);
        assert_eq!(baggage("user=a%20b;p=1, tenant = x ,").as_deref(), Some("user=a%20b;p=1,tenant = x"));
        assert_eq!(baggage("bad,\u{e9}=1,a=\"b\",k=v\nx: y,good=1").as_deref(), Some("good=1"));
        for bad in ["", "a", "=1", ",,"] {
            assert_eq!(baggage(bad), None, "{bad}");
        }
        let long = format!("long={}", "x".repeat(MAX_BAGGAGE_BYTES));
        assert_eq!(baggage(&format!("{long},short=1")).as_deref(), Some("short=1"));
        let many: Vec<String> = (0..70).map(|n| format!("k{n}=1")).collect();
        assert_eq!(baggage(&many.join(",")), Some(many[..64].join(",")));
    }

    #[test]
    fn what_is_stored_is_read_again() {
        for (tracestate, baggage) in
            [(None, None), (Some("a=1"), None), (None, Some("k=v")), (Some("a=1"), Some("k=v"))]
        {
            let context = TraceContext::new(Some(GOOD), tracestate, baggage);
            let stored = TraceContext::from_stored(context.traceparent(), context.stored_rest().as_deref());
            assert_eq!(stored, context);
        }
        assert!(TraceContext::from_stored(Some("damaged"), None).is_empty());
    }

    #[test]
    fn a_new_trace_that_nobody_records_is_named_after_its_job_and_stored_as_a_bit_or_a_byte() {
        let id: JobId = "019539a4-b68c-7def-8000-1a2b3c4d5e6f".parse().expect("an id");
        assert!(id.has_salt_mark());
        let span = SpanReference { trace_id: 1, span_id: 2, flags: 0 };
        let new = TraceContext::new(None, None, Some("k=v")).with_first_span(span);
        let child = new.with_span(SpanReference { span_id: 3, ..span });
        for new in [new, child] {
            assert!(new.is_new_and_unrecorded() && new.stored_with_new_job().is_none());
            let named = new.named_after(id);
            assert_eq!(named.traceparent(), Some("00-019539a4b68c7def80001a2b3c4d5e6f-80001a2b3c4d5e6f-00"));
            assert_eq!(named.stored_with_job(id), Some("-"));
            assert_eq!(TraceContext::from_job(id, Some("-"), named.stored_rest().as_deref()), named);
            assert_eq!(TraceContext::from_entry(id, None, named.stored_rest().as_deref()), named);
            let follows = named.with_span(SpanReference { span_id: 4, ..named.span().expect("a span") });
            assert_eq!(follows.stored_with_new_job(), follows.traceparent(), "what a job causes stays in its trace");
        }
    }

    #[test]
    fn a_trace_that_is_recorded_or_came_from_outside_keeps_its_id() {
        let id: JobId = "019539a4-b68c-7def-8000-1a2b3c4d5e6f".parse().expect("an id");
        let sampled = SpanReference { trace_id: 1, span_id: 2, flags: 1 };
        let outside = TraceContext::new(Some(&format!("{}00", &GOOD[..53])), Some("a=1"), None);
        let child = outside.with_span(SpanReference { span_id: 3, ..outside.span().expect("a span") });
        for kept in [TraceContext::default().with_first_span(sampled), outside, child] {
            assert_eq!(kept.clone().named_after(id), kept);
            assert_eq!(kept.stored_with_new_job(), kept.traceparent());
            assert_eq!(TraceContext::from_entry(id, kept.stored_with_new_job(), kept.stored_rest().as_deref()), kept);
            let stored = TraceContext::from_job(id, kept.stored_with_job(id), kept.stored_rest().as_deref());
            assert_eq!(stored, kept);
        }
    }

    #[test]
    fn a_span_passes_the_rest_on_and_one_of_another_trace_no_tracestate() {
        let context = TraceContext::new(Some(GOOD), Some("a=1"), Some("k=v"));
        let own = context.span().expect("a span");
        let child = context.with_span(SpanReference { span_id: 1, ..own });
        assert_eq!((child.tracestate(), child.baggage()), (Some("a=1"), Some("k=v")));
        let other = context.with_span(SpanReference { trace_id: 1, ..own });
        assert_eq!((other.tracestate(), other.baggage()), (None, Some("k=v")));
        assert_eq!(child.headers().map(|(name, _)| name).collect::<Vec<_>>(), ["traceparent", "tracestate", "baggage"]);
    }
}
