//! The HTTP server of every service: actix-web on connections with deadlines.
//!
//! actix-web limits the time for the head of the first request of a connection only. Here every request of a connection
//! has a deadline for its head, and a body that nobody reads holds no connection open. A gateway's handlers limit the
//! time of the bodies that they read. Connections are counted, in all and by address, and may speak TLS and HTTP/2.

mod connection;
mod deadline;
mod exchange;
mod http2;
mod transport;

use std::{
    fmt,
    future::ready,
    io,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use actix_http::{HttpService, Protocol, Request, body::MessageBody};
use actix_server::ServerBuilder;
use actix_service::{IntoServiceFactory, ServiceFactory, ServiceFactoryExt, fn_factory, fn_service};
use actix_web::{
    Error, HttpResponse,
    dev::{AppConfig, RequestHead, Response, Server, Service},
    rt::net::TcpStream,
};
use rustls::ServerConfig;
use socket2::{Domain, SockRef, Socket, Type};
use tokio_rustls::TlsAcceptor;

pub use self::exchange::follow_exchange;
use self::{connection::TimedStream, transport::Transport};
use crate::{
    client_limiter::{ClientLimiter, ClientPermit, TooMany, client_address},
    prometheus,
};

/// How long a connection without a request stays open: longer than the 60 s of most proxies, so that the proxy closes
/// it.
const KEEP_ALIVE: Duration = Duration::from_secs(75);
/// How long a client may still send the body of a request that was answered without reading it. If the server closed at
/// once, the client would lose the answer.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(1);
const BACKLOG: i32 = 1024;

/// What a client gets whose connection is one too many. It may ask again soon.
const TOO_MANY_CONNECTIONS: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";

/// How many connections there may be, and how long the server waits for a client.
#[derive(Debug, Clone, Copy)]
pub struct ConnectionLimits {
    /// Connections at a time.
    pub max_connections: usize,
    /// Those of one address.
    pub max_per_address: Option<usize>,
    /// For the whole head of a request, from its first byte.
    pub head_timeout: Duration,
    /// For data that the client does not take. Only Linux knows what a client has taken.
    pub stall_timeout: Duration,
    /// On a graceful stop, for requests in progress.
    pub shutdown_grace: Duration,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self {
            max_connections: 4096,
            max_per_address: None,
            head_timeout: Duration::from_secs(5),
            stall_timeout: Duration::from_secs(30),
            shutdown_grace: Duration::from_secs(1),
        }
    }
}

/// A server that is bound and does not run yet.
pub struct HttpListener {
    listener: std::net::TcpListener,
    address: SocketAddr,
    tls: Option<TlsAcceptor>,
}

impl HttpListener {
    /// Binds an address. Port 0 picks a free port.
    ///
    /// # Errors
    /// The address is taken.
    pub fn bind(listen: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(listen), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&listen.into())?;
        socket.listen(BACKLOG)?;
        let listener = std::net::TcpListener::from(socket);
        let address = listener.local_addr()?;
        Ok(Self { listener, address, tls: None })
    }

    /// Speaks TLS.
    #[must_use]
    pub fn with_tls(self, config: Option<Arc<ServerConfig>>) -> Self {
        Self { tls: config.map(TlsAcceptor::from), ..self }
    }

    /// The bound address.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves the application that `app` builds for each of the threads, which must wrap [`follow_exchange`].
    /// `refuse_early` answers a client that asks before it sends its body (`Expect: 100-continue`), if the body would
    /// be refused.
    ///
    /// # Errors
    /// The socket cannot be used.
    pub fn serve<F, I, S, B>(
        self,
        builder: ServerBuilder,
        limits: ConnectionLimits,
        refuse_early: impl Fn(&RequestHead) -> Option<HttpResponse> + Clone + Send + 'static,
        app: F,
    ) -> io::Result<Server>
    where
        F: Fn() -> I + Clone + Send + 'static,
        I: IntoServiceFactory<S, Request>,
        S: ServiceFactory<Request, Config = AppConfig> + 'static,
        S::Error: Into<Error> + 'static,
        S::InitError: fmt::Debug,
        S::Response: Into<Response<B>> + 'static,
        <S::Service as Service<Request>>::Future: 'static,
        S::Service: 'static,
        B: MessageBody + 'static,
    {
        let Self { listener, address, tls } = self;
        let counted = counted_connections(limits);
        let stopping = builder.graceful_shutdown_signal();
        let builder = builder.disable_signals().shutdown_timeout(limits.shutdown_grace.as_secs().max(1));
        // Ours, which is for all threads together, comes first
        let builder = builder.max_concurrent_connections(limits.max_connections.saturating_add(1));
        let builder = builder.listen("http", listener, move || {
            let (app, tls, counted) = (app.clone(), tls.clone(), counted.clone());
            let (stopping, refuse_early) = (stopping.clone(), refuse_early.clone());
            fn_factory(move || {
                let app = app().into_factory().map_err(|error| error.into().error_response());
                let (tls, counted) = (tls.clone(), counted.clone());
                let (stopping, refuse_early) = (stopping.clone(), refuse_early.clone());
                async move {
                    let built = app.new_service(AppConfig::default()).await;
                    let app = built.map_err(|error| tracing::error!(?error, "a thread of a server cannot be built"))?;
                    // Both protocols share it
                    let app = Rc::new(app);
                    let (shared, signal) = (app.clone(), stopping.clone());
                    let http1 = HttpService::build()
                        .graceful_shutdown_signal(move || {
                            let signal = signal.clone();
                            async move { signal.notified().await }
                        })
                        .keep_alive(KEEP_ALIVE)
                        // Our connections have this deadline for every head
                        .client_request_timeout(Duration::ZERO)
                        .client_disconnect_timeout(DISCARD_TIMEOUT)
                        // A client that hangs up while its request waits must free its permit at once
                        .h1_allow_half_closed(false)
                        .local_addr(address)
                        .on_connect_ext(|stream: &TimedStream, data| {
                            data.insert(stream.clock());
                        })
                        .expect(fn_service(move |request: Request| {
                            let refused = refuse_early(request.head()).map(Response::from);
                            ready(refused.map_or(Ok(request), Err))
                        }))
                        .finish(fn_factory(move || ready(Ok::<_, ()>(shared.clone()))))
                        .new_service(())
                        .await?;
                    let http1 = Rc::new(http1);
                    Ok::<_, ()>(fn_service(move |stream: TcpStream| {
                        let (app, http1, stopping) = (app.clone(), http1.clone(), stopping.clone());
                        let (tls, counted) = (tls.clone(), counted.clone());
                        async move {
                            let peer = stream.peer_addr().ok();
                            let Some((transport, _permit)) = open(stream, peer, &counted, tls.as_ref(), limits).await
                            else {
                                return Ok(());
                            };
                            if transport.is_http2() {
                                // Boxed, as the handshake of TLS: a connection without them needs no memory for them
                                Box::pin(http2::serve(transport, peer, &app, limits, stopping.notified())).await;
                            } else {
                                let stream = TimedStream::new(transport, limits.head_timeout);
                                // It has logged what is worth it
                                let _ = http1.call((stream, Protocol::Http1, peer)).await;
                            }
                            Ok::<_, ()>(())
                        }
                    }))
                }
            })
        })?;
        Ok(builder.run())
    }
}

/// Counts open connections, and shows how many there are.
fn counted_connections(limits: ConnectionLimits) -> ClientLimiter<IpAddr> {
    let counted = ClientLimiter::new(Some(limits.max_connections), limits.max_per_address);
    let shown = counted.clone();
    prometheus::add_source(move |samples| {
        let total = u32::try_from(shown.total()).unwrap_or(u32::MAX);
        samples.gauge("galley_http_connections", &[], f64::from(total));
        true
    });
    counted
}

/// Counts a connection and prepares it; none if there are too many, or its client cannot be talked to.
async fn open(
    stream: TcpStream,
    peer: Option<SocketAddr>,
    counted: &ClientLimiter<IpAddr>,
    tls: Option<&TlsAcceptor>,
    limits: ConnectionLimits,
) -> Option<(Transport, ClientPermit<IpAddr>)> {
    let permit = match counted.admit(peer.map(|peer| client_address(peer.ip()))) {
        Ok(permit) => permit,
        Err(too_many) => {
            let reason = if too_many == TooMany::Total { "total" } else { "address" };
            metrics::counter!("galley_http_refused_connections_total", "reason" => reason).increment(1);
            if tls.is_none() {
                // It fits into an empty buffer, or the client gets none
                let _ = stream.try_write(TOO_MANY_CONNECTIONS);
            }
            return None;
        }
    };
    // A large answer is written in pieces: the kernel must not hold the last one back for the client's answer
    let _ = stream.set_nodelay(true);
    // A client that reads nothing must not hold the server up: only the kernel knows what it has read
    set_stall_timeout(&stream, limits.stall_timeout);
    let Some(tls) = tls else { return Some((Transport::Plain(stream), permit)) };
    match Box::pin(Transport::accept(stream, tls, limits.head_timeout)).await {
        Ok(transport) => Some((transport, permit)),
        Err(error) => {
            metrics::counter!("galley_tls_failed_handshakes_total").increment(1);
            tracing::debug!(%error, "a client could not agree on TLS");
            None
        }
    }
}

/// Lets the kernel break a connection whose client has not taken what was sent for that long.
#[cfg(target_os = "linux")]
fn set_stall_timeout(stream: &TcpStream, stall: Duration) {
    if let Err(error) = SockRef::from(stream).set_tcp_user_timeout(Some(stall)) {
        tracing::debug!(%error, "a client that takes nothing cannot be disconnected");
    }
}

/// Only Linux can: elsewhere such a client is disconnected when its buffers are full and its keep-alives fail.
#[cfg(not(target_os = "linux"))]
fn set_stall_timeout(_stream: &TcpStream, _stall: Duration) {}
