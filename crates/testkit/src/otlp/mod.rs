//! An OTLP receiver over gRPC, as Jaeger is one: it keeps the spans it is sent. Those that are sent over HTTP a
//! [`crate::WebhookReceiver`] takes, and [`decode_spans`] reads.

use std::{
    collections::BTreeMap,
    io::Read,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{KeyValue, any_value::Value},
    trace::v1::status::StatusCode,
};
use prost::Message;
use tonic::{
    Request, Response, Status,
    codec::CompressionEncoding,
    transport::{Identity, ServerTlsConfig, server::TcpIncoming},
};

use crate::CertificateFiles;

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
    let mut plain = body.to_vec();
    if is_gzip {
        plain.clear();
        flate2::read::GzDecoder::new(body).read_to_end(&mut plain).expect("gzip");
    }
    spans_of(ExportTraceServiceRequest::decode(plain.as_slice()).expect("a request of OTLP"))
}

/// A running receiver.
#[derive(Clone)]
pub struct OtlpReceiver {
    address: SocketAddr,
    spans: Arc<Mutex<Vec<ReceivedSpan>>>,
    text: Arc<Mutex<String>>,
    /// Whether it takes requests and never answers.
    hangs: Arc<AtomicBool>,
    /// Whether it keeps nothing.
    discards: Arc<AtomicBool>,
}

impl OtlpReceiver {
    /// Starts one on an address, which may have port 0.
    ///
    /// # Panics
    /// The address is taken.
    #[must_use]
    pub fn start(listen: SocketAddr) -> Self {
        Self::serve(listen, tonic::transport::Server::builder())
    }

    /// Starts one that speaks TLS, on this machine.
    ///
    /// # Panics
    /// The certificate cannot be used.
    #[must_use]
    pub fn start_with_tls(certificate: &CertificateFiles) -> Self {
        let read = |path: &str| std::fs::read(path).expect("a file");
        let identity = Identity::from_pem(read(&certificate.cert), read(&certificate.key));
        let server = tonic::transport::Server::builder().tls_config(ServerTlsConfig::new().identity(identity));
        Self::serve(([127, 0, 0, 1], 0).into(), server.expect("a certificate"))
    }

    fn serve(listen: SocketAddr, mut server: tonic::transport::Server) -> Self {
        let incoming = TcpIncoming::bind(listen).expect("the address is free");
        let address = incoming.local_addr().expect("an address");
        let receiver = Self {
            address,
            spans: Arc::default(),
            text: Arc::default(),
            hangs: Arc::default(),
            discards: Arc::default(),
        };
        let service = TraceServiceServer::new(receiver.clone()).accept_compressed(CompressionEncoding::Gzip);
        tokio::spawn(server.add_service(service).serve_with_incoming(incoming));
        receiver
    }

    /// Its port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// `http://127.0.0.1:<port>`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Everything received so far, attributes and all, to look for what must not be there.
    #[must_use]
    pub fn received_text(&self) -> String {
        self.text.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// From now on it keeps nothing.
    pub fn discard(&self) {
        self.discards.store(true, Ordering::Relaxed);
    }

    /// From now on it takes requests and never answers.
    pub fn hang(&self) {
        self.hangs.store(true, Ordering::Relaxed);
    }

    /// The spans received so far.
    #[must_use]
    pub fn spans(&self) -> Vec<ReceivedSpan> {
        self.spans.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[tonic::async_trait]
impl TraceService for OtlpReceiver {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        if self.discards.load(Ordering::Relaxed) {
            return Ok(Response::new(ExportTraceServiceResponse { partial_success: None }));
        }
        let text = format!("{:?} {:?}", request.metadata(), request.get_ref());
        self.text.lock().unwrap_or_else(PoisonError::into_inner).push_str(&text);
        if self.hangs.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        let received = spans_of(request.into_inner());
        self.spans.lock().unwrap_or_else(PoisonError::into_inner).extend(received);
        Ok(Response::new(ExportTraceServiceResponse { partial_success: None }))
    }
}

fn spans_of(request: ExportTraceServiceRequest) -> Vec<ReceivedSpan> {
    let mut received = Vec::new();
    for resource_spans in request.resource_spans {
        let resource = resource_spans.resource.map(|resource| texts(resource.attributes)).unwrap_or_default();
        let service = resource.get("service.name").cloned().unwrap_or_default();
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

fn texts(attributes: Vec<KeyValue>) -> BTreeMap<String, String> {
    let text = |value: Option<Value>| match value {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::BoolValue(is_so)) => is_so.to_string(),
        other => format!("{other:?}"),
    };
    attributes.into_iter().map(|one| (one.key, text(one.value.and_then(|value| value.value)))).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}
