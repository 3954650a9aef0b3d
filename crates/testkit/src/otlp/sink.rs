//! A receiver of spans over gRPC that reads what comes and does not look into it: on this machine it costs little of what
//! a receiver costs its own machine. For benchmarks.

use std::{
    convert::Infallible,
    net::SocketAddr,
    task::{Context, Poll},
};

use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use tonic::{
    Status,
    body::Body,
    codegen::{BoxFuture, Bytes, Service, http},
    server::NamedService,
    transport::{Server, server::TcpIncoming},
};

/// A message of no bytes: not compressed, and its length.
const EMPTY_MESSAGE: [u8; 5] = [0; 5];

#[derive(Debug, Clone)]
struct OtlpSink;

/// Takes requests on that address until the process ends.
///
/// # Panics
/// The address is taken.
pub async fn serve_otlp_sink(listen: SocketAddr) {
    let incoming = TcpIncoming::bind(listen).expect("the address is free");
    Server::builder().add_service(OtlpSink).serve_with_incoming(incoming).await.expect("a server");
}

impl NamedService for OtlpSink {
    const NAME: &'static str = "opentelemetry.proto.collector.trace.v1.TraceService";
}

impl Service<http::Request<Body>> for OtlpSink {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(async move {
            let mut body = request.into_body();
            while let Some(Ok(_)) = body.frame().await {}
            let mut trailers = http::HeaderMap::new();
            trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
            let frames =
                [Ok::<_, Status>(Frame::data(Bytes::from_static(&EMPTY_MESSAGE))), Ok(Frame::trailers(trailers))];
            let mut response = http::Response::new(Body::new(StreamBody::new(stream::iter(frames))));
            let grpc = http::HeaderValue::from_static("application/grpc");
            response.headers_mut().insert(http::header::CONTENT_TYPE, grpc);
            Ok(response)
        })
    }
}
