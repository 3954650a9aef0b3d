//! Opens WebSocket connections.

use actix_http::BoxedPayloadStream;
use actix_web::{
    FromRequest, HttpRequest,
    body::MessageBody,
    dev::Payload,
    http::{
        Version,
        header::{self, HeaderValue},
    },
    rt, web,
};
use serde::Deserialize;

use super::open_reader;
use crate::{
    auth::{Caller, StreamSession},
    error::{ApiError, ErrorCode},
    message_socket::{
        AckWindow, FRAME_LIMIT_BYTES, FrameGuard, MAX_WINDOW, MESSAGE_HEAD, MessageSocket, OutboundBytes,
        SocketPublisher,
    },
    routes::{ApiResult, parse_bounded},
    services::Services,
};

/// The one protocol that is spoken on the connection. A browser that asks for protocols fails unless it gets one.
const SUBPROTOCOL: &str = "galley.v1";

#[derive(Deserialize)]
pub(crate) struct WebSocketQuery {
    window: Option<String>,
}

/// Opens a WebSocket.
pub(crate) async fn connect(
    request: HttpRequest,
    services: web::Data<Services>,
    caller: Caller,
    query: web::Query<WebSocketQuery>,
    body: web::Payload,
) -> ApiResult {
    let window = match query.window.as_deref() {
        Some(given) => Some(AckWindow::new(parse_bounded("window", Some(given), 1, MAX_WINDOW)?)),
        None => None,
    };
    require_upgrade(&request)?;
    let rights = StreamSession::open(&request)?;
    let publisher = SocketPublisher::of(&request, &services);
    let mut reader = open_reader(&services)?;
    reader.set_message_head(MESSAGE_HEAD);
    let frames: BoxedPayloadStream = Box::pin(FrameGuard::new(body.into_inner(), FRAME_LIMIT_BYTES));
    let mut guarded = Payload::from(frames);
    let guarded = web::Payload::from_request(&request, &mut guarded).await.map_err(ApiError::internal)?;
    let (response, session, frames) = actix_ws::handle_with_protocols(&request, guarded, &[SUBPROTOCOL])
        .map_err(|_| ApiError::invalid("Sec-WebSocket-Key must be 16 bytes in base64"))?;
    let frames = frames.max_frame_size(FRAME_LIMIT_BYTES).aggregate_continuations();
    let frames = frames.max_continuation_size(FRAME_LIMIT_BYTES);
    let outbox = OutboundBytes::new(services.sockets.clone());
    let socket = MessageSocket {
        services: services.get_ref().clone(),
        caller,
        rights,
        publisher,
        reader,
        session,
        outbound: outbox.clone(),
        window,
        presence: None,
    };
    rt::spawn(socket.run(frames));
    Ok(response.map_body(|_, body| outbox.wrap_body(body).boxed()))
}

/// Refuses what is no handshake of WebSocket 13 over HTTP/1.1.
fn require_upgrade(request: &HttpRequest) -> Result<(), ApiError> {
    let has_token = |name: header::HeaderName, wanted: &str| {
        let given = request.headers().get_all(name).filter_map(|value| value.to_str().ok());
        given.flat_map(|value| value.split(',')).any(|token| token.trim().eq_ignore_ascii_case(wanted))
    };
    let version = request.headers().get(header::SEC_WEBSOCKET_VERSION).map(HeaderValue::as_bytes);
    let is_upgrade = has_token(header::UPGRADE, "websocket") && has_token(header::CONNECTION, "upgrade");
    if request.version() == Version::HTTP_11 && is_upgrade && version == Some(b"13") {
        return Ok(());
    }
    let message = "this path is for WebSocket: send the handshake of version 13 over HTTP/1.1";
    Err(ApiError::new(ErrorCode::UpgradeRequired, message))
}
