//! The middleware that tells a connection's clock where its requests begin and end, and makes responses fit for
//! HTTP/1.0.

use std::{
    cell::RefCell,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use actix_http::{BoxedPayloadStream, ConnectionType, error::PayloadError};
use actix_web::{
    Error, HttpMessage, HttpResponse,
    body::{BodySize, EitherBody, MessageBody},
    dev::{Payload, ServiceRequest, ServiceResponse},
    http::{StatusCode, Version},
    middleware::Next,
    web::Bytes,
};
use futures_util::Stream;

use super::deadline::ConnectionClock;

/// Follows a request from its head to the end of its response. Every application wraps it.
///
/// # Errors
/// Those of the application.
pub async fn follow_exchange(
    mut request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let exchange = Exchange { clock: request.conn_data::<ConnectionClock>().cloned(), unread: UnreadBody::default() };
    if let Some(clock) = &exchange.clock {
        clock.begin_request();
        if clock.is_closing() {
            // The client said that nothing more comes: this may be from somebody else, who wants it taken for the client's
            let mut response = HttpResponse::new(StatusCode::BAD_REQUEST);
            response.head_mut().set_connection_type(ConnectionType::Close);
            let response = request.into_response(response);
            return Ok(response.map_body(|_, body| FollowedResponse::new(EitherBody::right(body), exchange)));
        }
        if request.head().connection_type() == ConnectionType::Close {
            clock.set_closing();
        }
    }
    match request.take_payload() {
        Payload::None => {}
        payload => {
            let unread = exchange.unread.clone();
            let body: BoxedPayloadStream =
                Box::pin(FollowedBody { payload: Some(payload), unread, clock: exchange.clock.clone() });
            request.set_payload(Payload::Stream { payload: body });
        }
    }
    let is_old = request.version() < Version::HTTP_11;
    let mut response = next.call(request).await?;
    if is_old && matches!(response.response().body().size(), BodySize::Stream) {
        // HTTP/1.0 knows no chunks: the end of the connection is the end of the body
        let head = response.response_mut().head_mut();
        head.no_chunking(true);
        head.set_connection_type(ConnectionType::Close);
    }
    Ok(response.map_body(|_, body| FollowedResponse::new(EitherBody::left(body), exchange)))
}

/// A body that the handler did not read to its end. It is kept until the response ends: the server then closes the
/// connection, and does not wait for the rest.
type UnreadBody = Rc<RefCell<Option<Payload>>>;

/// A request and its response. When it is dropped the response is complete.
struct Exchange {
    clock: Option<ConnectionClock>,
    unread: UnreadBody,
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if let Some(clock) = &self.clock {
            clock.end_response();
        }
    }
}

struct FollowedBody {
    /// None when it was read to its end.
    payload: Option<Payload>,
    unread: UnreadBody,
    clock: Option<ConnectionClock>,
}

impl Stream for FollowedBody {
    type Item = Result<Bytes, PayloadError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(payload) = &mut self.payload else { return Poll::Ready(None) };
        let next = Pin::new(payload).poll_next(cx);
        if matches!(next, Poll::Ready(None)) {
            self.payload = None;
            if let Some(clock) = &self.clock {
                clock.end_request_body();
            }
        }
        next
    }
}

impl Drop for FollowedBody {
    fn drop(&mut self) {
        if let Some(payload) = self.payload.take() {
            self.unread.replace(Some(payload));
        }
    }
}

struct FollowedResponse<B> {
    body: Pin<Box<B>>,
    _exchange: Exchange,
}

impl<B> FollowedResponse<B> {
    fn new(body: B, exchange: Exchange) -> Self {
        Self { body: Box::pin(body), _exchange: exchange }
    }
}

impl<B: MessageBody> MessageBody for FollowedResponse<B> {
    type Error = B::Error;

    fn size(&self) -> BodySize {
        self.body.size()
    }

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Self::Error>>> {
        self.body.as_mut().poll_next(cx)
    }
}
