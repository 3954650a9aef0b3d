//! Log lines as a receiver of OTLP gets them.

use std::collections::BTreeMap;

use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;

use super::{decode, hex, service_of, text, texts};

/// A log line, as far as tests look at it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReceivedLogRecord {
    /// The service that sent it.
    pub service: String,
    /// Its level, such as `INFO`.
    pub level: String,
    /// The module that logged it.
    pub module: String,
    /// Its text.
    pub message: String,
    /// Its fields as text.
    pub fields: BTreeMap<String, String>,
    /// The trace that it is about, in hex; empty for none.
    pub trace_id: String,
    /// The span that it is about, in hex; empty for none.
    pub span_id: String,
}

/// The log lines of a request, as OTLP over HTTP sends them.
///
/// # Panics
/// The bytes are no such request.
#[must_use]
pub fn decode_log_records(body: &[u8], is_gzip: bool) -> Vec<ReceivedLogRecord> {
    log_records_of(decode(body, is_gzip))
}

pub(super) fn log_records_of(request: ExportLogsServiceRequest) -> Vec<ReceivedLogRecord> {
    let mut received = Vec::new();
    for of_process in request.resource_logs {
        let service = service_of(of_process.resource);
        for of_module in of_process.scope_logs {
            let module = of_module.scope.map(|scope| scope.name).unwrap_or_default();
            received.extend(of_module.log_records.into_iter().map(|record| ReceivedLogRecord {
                service: service.clone(),
                level: record.severity_text,
                module: module.clone(),
                message: text(record.body.and_then(|body| body.value)),
                fields: texts(record.attributes),
                trace_id: hex(&record.trace_id),
                span_id: hex(&record.span_id),
            }));
        }
    }
    received
}
