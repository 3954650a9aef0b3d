//! An OTLP receiver over gRPC, as Jaeger is one: it keeps the spans it is sent.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::any_value::Value,
    trace::v1::status::StatusCode,
};
use tonic::{
    Request, Response, Status,
    transport::{Identity, ServerTlsConfig, server::TcpIncoming},
};

use crate::CertificateFiles;

/// A span, as far as tests look at it.
#[derive(Debug, Clone, PartialEq, Eq)]
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
    /// Whether its status is Error.
    pub is_error: bool,
}

/// A running receiver.
#[derive(Clone)]
pub struct OtlpReceiver {
    address: SocketAddr,
    spans: Arc<Mutex<Vec<ReceivedSpan>>>,
    text: Arc<Mutex<String>>,
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
        let receiver = Self { address, spans: Arc::default(), text: Arc::default() };
        let service = TraceServiceServer::new(receiver.clone());
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
        let mut received = Vec::new();
        let text = format!("{:?}", request.get_ref());
        self.text.lock().unwrap_or_else(PoisonError::into_inner).push_str(&text);
        for resource_spans in request.into_inner().resource_spans {
            let attributes = resource_spans.resource.map(|resource| resource.attributes).unwrap_or_default();
            let service = attributes.into_iter().find(|attribute| attribute.key == "service.name");
            let service = match service.and_then(|attribute| attribute.value?.value) {
                Some(Value::StringValue(name)) => name,
                _ => String::new(),
            };
            for span in resource_spans.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                received.push(ReceivedSpan {
                    service: service.clone(),
                    name: span.name,
                    trace_id: hex(&span.trace_id),
                    span_id: hex(&span.span_id),
                    parent_span_id: hex(&span.parent_span_id),
                    is_error: span.status.is_some_and(|status| status.code() == StatusCode::Error),
                });
            }
        }
        self.spans.lock().unwrap_or_else(PoisonError::into_inner).extend(received);
        Ok(Response::new(ExportTraceServiceResponse { partial_success: None }))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}
