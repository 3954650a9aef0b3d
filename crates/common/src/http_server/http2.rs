//! HTTP/2 on one connection.
//!
//! The streams of a connection are bounded. A request whose client cancels it or hangs up ends at once, with what it waits
//! for. A client that takes nothing of an answer for the stall timeout loses that answer; the kernel ends a connection that
//! takes nothing at all.

use std::{
    future::{Future, poll_fn},
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll, ready},
    time::{Duration, SystemTime},
};

use actix_http::{
    BoxedPayloadStream, Payload, Request, Response, ResponseHead,
    body::{BodySize, BoxBody, MessageBody},
    error::PayloadError,
};
use actix_web::{
    dev::Service,
    http::{
        Method, StatusCode, Uri, Version,
        header::{self, HeaderName, HeaderValue},
    },
};
use bytes::Bytes;
use futures_util::Stream;
use h2::{
    Reason, RecvStream, SendStream,
    server::{Builder, SendResponse},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::JoinSet,
    time::timeout,
};

use super::{ConnectionLimits, KEEP_ALIVE};

/// Requests of a connection at a time.
const MAX_STREAMS: u32 = 100;
/// Requests that a client cancels end when they are next polled. More of them in between are an attack.
const MAX_TASKS: usize = 4 * MAX_STREAMS as usize;
/// All headers of a request: as much as the head of a request of HTTP/1.1 may have.
const MAX_HEADER_BYTES: u32 = 128 << 10;
/// What a client may send of all bodies before handlers read it.
const CONNECTION_WINDOW_BYTES: u32 = 1 << 20;
/// What may wait in memory of each answer.
const MAX_UNSENT_BYTES: usize = 32 << 10;
/// Bytes of an answer for which room is asked at a time.
const PIECE_BYTES: usize = 16 << 10;
/// Of HTTP/1.1 only: a message of HTTP/2 with one of these is malformed.
const CONNECTION_HEADERS: [&str; 5] = ["connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"];

/// Serves a connection until it ends. `stopping` ends when the server stops: then requests in progress are answered.
pub(super) async fn serve<S, B>(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    peer: Option<SocketAddr>,
    service: &Rc<S>,
    limits: ConnectionLimits,
    stopping: impl Future<Output = ()>,
) where
    S: Service<Request> + 'static,
    S::Response: Into<Response<B>>,
    S::Error: Into<Response<BoxBody>>,
    B: MessageBody + 'static,
{
    let mut builder = Builder::new();
    builder.max_concurrent_streams(MAX_STREAMS).max_header_list_size(MAX_HEADER_BYTES);
    builder.initial_connection_window_size(CONNECTION_WINDOW_BYTES).max_send_buffer_size(MAX_UNSENT_BYTES);
    let Ok(Ok(mut connection)) = timeout(limits.head_timeout, builder.handshake::<_, Bytes>(stream)).await else {
        return;
    };
    let mut requests = JoinSet::new();
    let mut stopping = pin!(stopping);
    let mut is_stopping = false;
    loop {
        let is_idle = requests.is_empty();
        tokio::select! {
            accepted = connection.accept() => {
                // An error is the client's: it is told, and the connection ends
                let Some(Ok((request, respond))) = accepted else { return };
                if requests.len() >= MAX_TASKS {
                    connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
                } else {
                    requests.spawn_local(answer(request, respond, peer, service.clone(), limits.stall_timeout));
                }
            }
            _ = requests.join_next(), if !is_idle => {}
            () = tokio::time::sleep(KEEP_ALIVE), if is_idle && !is_stopping => {
                is_stopping = true;
                connection.graceful_shutdown();
            }
            () = &mut stopping, if !is_stopping => {
                is_stopping = true;
                connection.graceful_shutdown();
            }
            // A client that does not close after the farewell
            () = tokio::time::sleep(limits.head_timeout), if is_idle && is_stopping => return,
        }
    }
}

/// Answers one request, unless its client cancels it first.
async fn answer<S, B>(
    request: http::Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    peer: Option<SocketAddr>,
    service: Rc<S>,
    stall: Duration,
) where
    S: Service<Request>,
    S::Response: Into<Response<B>>,
    S::Error: Into<Response<BoxBody>>,
    B: MessageBody,
{
    let is_head = request.method() == http::Method::HEAD;
    let Some(request) = convert(request, peer) else {
        return send(Response::new(StatusCode::BAD_REQUEST), respond, is_head, stall).await;
    };
    let answering = service.call(request);
    let answered = tokio::select! {
        _ = poll_fn(|cx| respond.poll_reset(cx)) => return,
        answered = answering => answered,
    };
    match answered {
        Ok(response) => send(response.into(), respond, is_head, stall).await,
        Err(error) => send(error.into(), respond, is_head, stall).await,
    }
}

/// A request as handlers know it: with a `Host`, and without one in its path. None if they could not read it. actix has
/// types of its own for the same.
fn convert(request: http::Request<RecvStream>, peer: Option<SocketAddr>) -> Option<Request> {
    let (parts, body) = request.into_parts();
    let body: BoxedPayloadStream = Box::pin(Body(body));
    let mut request = Request::with_payload(Payload::Stream { payload: body });
    let head = request.head_mut();
    head.uri = parts.uri.path_and_query().map_or("/", |path| path.as_str()).parse::<Uri>().ok()?;
    head.method = Method::from_bytes(parts.method.as_str().as_bytes()).ok()?;
    head.version = Version::HTTP_2;
    head.peer_addr = peer;
    for (name, value) in &parts.headers {
        let name = HeaderName::from_bytes(name.as_str().as_bytes()).ok()?;
        head.headers.append(name, HeaderValue::from_bytes(value.as_bytes()).ok()?);
    }
    // What the client says twice, the authority says
    if let Some(authority) = parts.uri.authority() {
        head.headers.insert(header::HOST, HeaderValue::from_str(authority.as_str()).ok()?);
    }
    Some(request)
}

/// The body of a request. The client may send more when it was read.
struct Body(RecvStream);

impl Stream for Body {
    type Item = Result<Bytes, PayloadError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let stream = &mut self.get_mut().0;
        let broken = |error: h2::Error| PayloadError::Io(io::Error::other(error));
        Poll::Ready(match ready!(stream.poll_data(cx)) {
            Some(Ok(bytes)) => {
                let released = stream.flow_control().release_capacity(bytes.len());
                Some(released.map(|()| bytes).map_err(broken))
            }
            Some(Err(error)) => Some(Err(broken(error))),
            None => None,
        })
    }
}

async fn send<B: MessageBody>(response: Response<B>, mut respond: SendResponse<Bytes>, is_head: bool, stall: Duration) {
    let (head, body) = response.into_parts();
    let size = body.size();
    let is_end = is_head || size.is_eof();
    // It fails when the client is gone
    let Ok(mut stream) = respond.send_response(convert_head(head.head(), size), is_end) else { return };
    if is_end {
        return;
    }
    let mut body = pin!(body);
    loop {
        let next = tokio::select! {
            _ = poll_fn(|cx| stream.poll_reset(cx)) => return,
            next = poll_fn(|cx| body.as_mut().poll_next(cx)) => next,
        };
        match next {
            Some(Ok(bytes)) => {
                if send_bytes(&mut stream, bytes, stall).await.is_none() {
                    return;
                }
            }
            Some(Err(_)) => return stream.send_reset(Reason::INTERNAL_ERROR),
            None => {
                let _ = stream.send_data(Bytes::new(), true);
                return;
            }
        }
    }
}

/// Sends bytes as the client takes them; none if it is gone, or takes nothing for too long.
async fn send_bytes(stream: &mut SendStream<Bytes>, mut bytes: Bytes, stall: Duration) -> Option<()> {
    while !bytes.is_empty() {
        stream.reserve_capacity(bytes.len().min(PIECE_BYTES));
        let Ok(room) = timeout(stall, poll_fn(|cx| stream.poll_capacity(cx))).await else {
            stream.send_reset(Reason::CANCEL);
            return None;
        };
        let room = room?.ok()?.min(bytes.len());
        stream.send_data(bytes.split_to(room), false).ok()?;
    }
    Some(())
}

fn convert_head(head: &ResponseHead, size: BodySize) -> http::Response<()> {
    let mut response = http::Response::new(());
    *response.status_mut() = http::StatusCode::from_u16(head.status.as_u16()).unwrap_or_default();
    let headers = response.headers_mut();
    for (name, value) in &head.headers {
        if CONNECTION_HEADERS.contains(&name.as_str()) || *name == header::CONTENT_LENGTH {
            continue;
        }
        if let Ok(name) = http::HeaderName::from_bytes(name.as_str().as_bytes())
            && let Ok(value) = http::HeaderValue::from_bytes(value.as_bytes())
        {
            headers.append(name, value);
        }
    }
    if let BodySize::Sized(length) = size {
        headers.insert(http::header::CONTENT_LENGTH, length.into());
    }
    if let Ok(date) = http::HeaderValue::from_str(&httpdate::fmt_http_date(SystemTime::now())) {
        headers.entry(http::header::DATE).or_insert(date);
    }
    response
}
