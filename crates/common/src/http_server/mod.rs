//! The HTTP server of every service: actix-web on connections with deadlines.
//!
//! actix-web limits the time for the head of the first request of a connection only. Here every request of a connection
//! has a deadline for its head, and a body that nobody reads holds no connection open. A gateway's handlers limit the
//! time of the bodies that they read.

mod connection;
mod deadline;
mod exchange;

use std::{fmt, io, net::SocketAddr, time::Duration};

use actix_http::{HttpService, Protocol, Request, body::MessageBody};
use actix_server::ServerBuilder;
use actix_service::{IntoServiceFactory, ServiceFactory, ServiceFactoryExt, fn_service, map_config};
use actix_web::{
    Error, HttpResponse,
    dev::{AppConfig, RequestHead, Response, Server, Service},
    rt::net::TcpStream,
};
use socket2::{Domain, SockRef, Socket, Type};

pub use self::exchange::follow_exchange;
use self::{connection::TimedStream, deadline::ConnectionClock};

/// How long a connection without a request stays open: longer than the 60 s of most proxies, so that the proxy closes
/// it.
const KEEP_ALIVE: Duration = Duration::from_secs(75);
/// How long a client may still send the body of a request that was answered without reading it. If the server closed at
/// once, the client would lose the answer.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(1);
const BACKLOG: i32 = 1024;

/// How long the server waits for a client.
#[derive(Debug, Clone, Copy)]
pub struct ConnectionLimits {
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
        Ok(Self { listener, address })
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
        let address = self.address;
        let stopping = builder.graceful_shutdown_signal();
        let builder = builder.disable_signals().shutdown_timeout(limits.shutdown_grace.as_secs().max(1));
        let builder = builder.listen("http", self.listener, move || {
            let (stopping, refuse_early) = (stopping.clone(), refuse_early.clone());
            let service = HttpService::build()
                .graceful_shutdown_signal(move || {
                    let stopping = stopping.clone();
                    async move { stopping.notified().await }
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
                    std::future::ready(refused.map_or(Ok(request), Err))
                }));
            let app = app().into_factory().map_err(|error| error.into().error_response());
            let service = service.finish(map_config(app, move |()| AppConfig::default()));
            fn_service(move |stream: TcpStream| {
                // A large answer is written in pieces: the kernel must not hold the last one back for the client's answer
                let _ = stream.set_nodelay(true);
                // A client that reads nothing must not hold the server up: only the kernel knows what it has read
                set_stall_timeout(&stream, limits.stall_timeout);
                let peer = stream.peer_addr().ok();
                let stream = TimedStream::new(stream, ConnectionClock::new(limits.head_timeout, KEEP_ALIVE));
                std::future::ready(Ok((stream, Protocol::Http1, peer)))
            })
            .and_then(service)
        })?;
        Ok(builder.run())
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
