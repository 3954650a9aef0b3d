//! Spans as a receiver of OTLP gets them.

use std::collections::BTreeMap;

use opentelemetry_proto::tonic::{collector::trace::v1::ExportTraceServiceRequest, trace::v1::status::StatusCode};

use super::{decode, hex, service_of, texts};

/// A span, as far as tests look at it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReceivedSpan {
    /// The service that sent it.
    pub service: String,
    /// Its name.
    pub name: String,
    /// Its trace, in hex.
    pub trace_id: String,
    /// Its own id, in hex.
    pub span_id: String,
    /// The span it is part of, in hex; empty for none.
    pub parent_span_id: String,
    /// Its kind, in lower case.
    pub kind: String,
    /// Whether its status is Error.
    pub is_error: bool,
    /// Its attributes as text.
    pub attributes: BTreeMap<String, String>,
    /// The traces and spans that it has links to, in hex.
    pub links: Vec<(String, String)>,
    /// Its events with their attributes.
    pub events: Vec<(String, BTreeMap<String, String>)>,
    /// Its `tracestate`.
    pub trace_state: String,
    /// When it began, in nanoseconds since 1970.
    pub began: u64,
    /// When it ended, in nanoseconds since 1970.
    pub ended: u64,
}

/// The spans of a request, as OTLP over HTTP sends them.
///
/// # Panics
/// The bytes are no such request.
#[must_use]
pub fn decode_spans(body: &[u8], is_gzip: bool) -> Vec<ReceivedSpan> {
    spans_of(decode(body, is_gzip))
}

pub(super) fn spans_of(request: ExportTraceServiceRequest) -> Vec<ReceivedSpan> {
    let mut received = Vec::new();
    for resource_spans in request.resource_spans {
        let service = service_of(resource_spans.resource);
        for span in resource_spans.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            let kind = span.kind().as_str_name().trim_start_matches("SPAN_KIND_").to_ascii_lowercase();
            received.push(ReceivedSpan {
                service: service.clone(),
                kind,
                name: span.name,
                trace_id: hex(&span.trace_id),
                span_id: hex(&span.span_id),
                parent_span_id: hex(&span.parent_span_id),
                is_error: span.status.is_some_and(|status| status.code() == StatusCode::Error),
                attributes: texts(span.attributes),
                links: span.links.iter().map(|link| (hex(&link.trace_id), hex(&link.span_id))).collect(),
                events: span.events.into_iter().map(|event| (event.name, texts(event.attributes))).collect(),
                trace_state: span.trace_state,
                began: span.start_time_unix_nano,
                ended: span.end_time_unix_nano,
            });
        }
    }
    received
}
