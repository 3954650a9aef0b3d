//! Streams of events and messages of one client: one that opens many must not take the places of all others.

use std::{
    net::IpAddr,
    pin::Pin,
    task::{Context, Poll},
};

use actix_web::{
    body::{BodySize, BoxBody, MessageBody},
    dev::ServiceResponse,
    http::Method,
    web::Bytes,
};
use common::client_limiter::{ClientLimiter, ClientPermit, client_address};

use crate::error::{ApiError, ErrorCode};

/// The streams of each client.
#[derive(Clone)]
pub(crate) struct StreamLimiter {
    streams: ClientLimiter<IpAddr>,
    max_per_client: Option<usize>,
}

impl StreamLimiter {
    pub(crate) fn new(max_per_client: Option<usize>) -> Self {
        Self { streams: ClientLimiter::new(None, max_per_client), max_per_client }
    }

    /// Counts a stream until it ends, or refuses it. What it opened ends with the answer that is dropped.
    pub(crate) fn count(&self, response: ServiceResponse, path: &str, request_id: &str) -> ServiceResponse {
        let request = response.request();
        let is_stream = matches!(response.response().body().size(), BodySize::Stream);
        let Some(max) = self.max_per_client.filter(|_| is_stream && request.method() == Method::GET) else {
            return response;
        };
        let client = request.peer_addr().map(|peer| client_address(peer.ip()));
        if let Ok(permit) = self.streams.admit(client) {
            return response.map_body(|_, body| BoxBody::new(StreamBody { body, permit }));
        }
        let message = format!("this client has {max} streams open, which is gateway.max_streams_per_client");
        let (request, _) = response.into_parts();
        ServiceResponse::new(request, ApiError::new(ErrorCode::TooManyReaders, message).render(path, request_id))
    }
}

struct StreamBody {
    body: BoxBody,
    #[expect(dead_code, reason = "counts while the body is there")]
    permit: ClientPermit<IpAddr>,
}

impl MessageBody for StreamBody {
    type Error = Box<dyn std::error::Error>;

    fn size(&self) -> BodySize {
        self.body.size()
    }

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, Self::Error>>> {
        Pin::new(&mut self.body).poll_next(context)
    }
}
