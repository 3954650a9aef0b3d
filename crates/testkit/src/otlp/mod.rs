//! An OTLP receiver over gRPC: it keeps the spans that it is sent, as Jaeger does, and log lines and metrics, as a collector
//! does. What is sent over HTTP a [`crate::WebhookReceiver`] takes; [`decode_spans`] and its like read that.

mod log_records;
mod metric_points;
mod sink;
mod spans;

use std::{
    collections::BTreeMap,
    fmt::Debug,
    io::Read,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use opentelemetry_proto::tonic::{
    collector::{
        logs::v1::{
            ExportLogsServiceRequest, ExportLogsServiceResponse,
            logs_service_server::{LogsService, LogsServiceServer},
        },
        metrics::v1::{
            ExportMetricsServiceRequest, ExportMetricsServiceResponse,
            metrics_service_server::{MetricsService, MetricsServiceServer},
        },
        trace::v1::{
            ExportTraceServiceRequest, ExportTraceServiceResponse,
            trace_service_server::{TraceService, TraceServiceServer},
        },
    },
    common::v1::{KeyValue, any_value::Value},
    resource::v1::Resource,
};
use prost::Message;
use tonic::{
    Request, Response, Status,
    codec::CompressionEncoding,
    transport::{Identity, ServerTlsConfig, server::TcpIncoming},
};

pub use log_records::{ReceivedLogRecord, decode_log_records};
pub use metric_points::{ReceivedPoint, decode_points};
pub use sink::serve_otlp_sink;
pub use spans::{ReceivedSpan, decode_spans};

use crate::CertificateFiles;

/// A running receiver.
#[derive(Clone)]
pub struct OtlpReceiver {
    address: SocketAddr,
    spans: Arc<Mutex<Vec<ReceivedSpan>>>,
    log_records: Arc<Mutex<Vec<ReceivedLogRecord>>>,
    points: Arc<Mutex<Vec<ReceivedPoint>>>,
    text: Arc<Mutex<String>>,
    /// Whether it takes requests and never answers.
    hangs: Arc<AtomicBool>,
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
            log_records: Arc::default(),
            points: Arc::default(),
            text: Arc::default(),
            hangs: Arc::default(),
        };
        let gzip = CompressionEncoding::Gzip;
        let server = server
            .add_service(TraceServiceServer::new(receiver.clone()).accept_compressed(gzip))
            .add_service(LogsServiceServer::new(receiver.clone()).accept_compressed(gzip))
            .add_service(MetricsServiceServer::new(receiver.clone()).accept_compressed(gzip));
        tokio::spawn(server.serve_with_incoming(incoming));
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

    /// From now on it takes requests and never answers.
    pub fn hang(&self) {
        self.hangs.store(true, Ordering::Relaxed);
    }

    /// The spans received so far.
    #[must_use]
    pub fn spans(&self) -> Vec<ReceivedSpan> {
        self.spans.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The log lines received so far.
    #[must_use]
    pub fn log_records(&self) -> Vec<ReceivedLogRecord> {
        self.log_records.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The values of metrics received so far, in the order in which they came.
    #[must_use]
    pub fn points(&self) -> Vec<ReceivedPoint> {
        self.points.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes a request.
    async fn note<R: Debug>(&self, request: &Request<R>) {
        let text = format!("{:?} {:?}", request.metadata(), request.get_ref());
        self.text.lock().unwrap_or_else(PoisonError::into_inner).push_str(&text);
        if self.hangs.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
    }
}

#[tonic::async_trait]
impl TraceService for OtlpReceiver {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.note(&request).await;
        let received = spans::spans_of(request.into_inner());
        self.spans.lock().unwrap_or_else(PoisonError::into_inner).extend(received);
        Ok(Response::new(ExportTraceServiceResponse { partial_success: None }))
    }
}

#[tonic::async_trait]
impl LogsService for OtlpReceiver {
    async fn export(
        &self,
        request: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        self.note(&request).await;
        let received = log_records::log_records_of(request.into_inner());
        self.log_records.lock().unwrap_or_else(PoisonError::into_inner).extend(received);
        Ok(Response::new(ExportLogsServiceResponse { partial_success: None }))
    }
}

#[tonic::async_trait]
impl MetricsService for OtlpReceiver {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        self.note(&request).await;
        let received = metric_points::points_of(request.into_inner());
        self.points.lock().unwrap_or_else(PoisonError::into_inner).extend(received);
        Ok(Response::new(ExportMetricsServiceResponse { partial_success: None }))
    }
}

/// A request, as OTLP over HTTP sends it.
fn decode<R: Message + Default>(body: &[u8], is_gzip: bool) -> R {
    let mut plain = body.to_vec();
    if is_gzip {
        plain.clear();
        flate2::read::GzDecoder::new(body).read_to_end(&mut plain).expect("gzip");
    }
    R::decode(plain.as_slice()).expect("a request of OTLP")
}

fn service_of(resource: Option<Resource>) -> String {
    let attributes = resource.map(|resource| texts(resource.attributes)).unwrap_or_default();
    attributes.get("service.name").cloned().unwrap_or_default()
}

fn texts(attributes: Vec<KeyValue>) -> BTreeMap<String, String> {
    attributes.into_iter().map(|one| (one.key, text(one.value.and_then(|value| value.value)))).collect()
}

fn text(value: Option<Value>) -> String {
    match value {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::BoolValue(is_so)) => is_so.to_string(),
        other => format!("{other:?}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}
