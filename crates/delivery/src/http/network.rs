//! Where connections are made: the one place through which everything that is pushed goes.
//!
//! An address is looked at when it is known and used at once: a name is resolved once for each connection, what is refused
//! is dropped, and the very addresses that remain are connected to, so an answer that changes in between changes nothing.
//! Proxies, cookies and redirects do not exist here.

use std::{
    collections::{HashMap, VecDeque},
    error::Error,
    fmt, io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use http::Uri;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::{
    client::legacy::connect::{HttpConnector, dns::Name},
    rt::TokioIo,
};
use rustls::{ClientConfig, RootCertStore, crypto::ring, pki_types::CertificateDer};
use tokio::net::TcpStream;
use tower_service::Service;

use super::{
    address,
    error::{PushErrorKind, PushFailure},
};

/// Addresses of one name that are tried, one after the other.
const MAX_ADDRESSES: usize = 8;

type ConnectFuture<T> = Pin<Box<dyn std::future::Future<Output = Result<T, ConnectError>> + Send>>;
type BoxError = Box<dyn Error + Send + Sync>;

/// What endpoints share: how names are resolved, and which certificates are trusted.
#[derive(Debug, Clone)]
pub struct Network {
    dns: DnsResolver,
    tls: ClientConfig,
    root_count: usize,
}

impl Network {
    /// The machine's resolver and its root certificates. Made once per process, because it reads many files.
    ///
    /// # Errors
    /// TLS cannot be set up. To have no root certificates is no error as long as nothing is sent over `https`.
    pub fn system() -> Result<Self, rustls::Error> {
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            tracing::warn!(%error, "root certificates cannot be read");
        }
        Self::new(DnsResolver::System, found.certs)
    }

    /// Other names or certificates than the machine's, for tests.
    ///
    /// # Errors
    /// TLS cannot be set up.
    pub fn new(
        names: DnsResolver,
        roots: impl IntoIterator<Item = CertificateDer<'static>>,
    ) -> Result<Self, rustls::Error> {
        let mut store = RootCertStore::empty();
        // Some machines have a few that are too old to be understood
        let (roots, _ignored) = store.add_parsable_certificates(roots);
        // Given here and not as a default of the process, which others would have to share
        let tls = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(store)
            .with_no_client_auth();
        Ok(Self { dns: names, tls, root_count: roots })
    }

    /// Whether any server can be trusted.
    pub(super) fn has_roots(&self) -> bool {
        self.root_count > 0
    }

    pub(super) fn connector(&self, allow_private: bool, timeout: Duration) -> PushConnector {
        let mut http =
            HttpConnector::new_with_resolver(AllowedAddressResolver { dns: self.dns.clone(), allow_private });
        http.enforce_http(false);
        http.set_nodelay(true);
        // Shared among the addresses of a name, so that one that is silent leaves time for the next
        http.set_connect_timeout(Some(timeout));
        let https = HttpsConnectorBuilder::new()
            .with_tls_config(self.tls.clone())
            .https_or_http()
            .enable_http1()
            .wrap_connector(TcpConnector { http, allow_private });
        PushConnector { https, timeout }
    }
}

/// How names become addresses.
#[derive(Debug, Clone)]
pub enum DnsResolver {
    /// As the machine does it.
    System,
    /// As a test wants it.
    Scripted(ScriptedDns),
}

/// Answers to the questions for a name, one after the other; the last one stays. Other names do not exist.
#[derive(Debug, Clone, Default)]
pub struct ScriptedDns(Arc<Mutex<HashMap<String, VecDeque<Vec<IpAddr>>>>>);

impl ScriptedDns {
    /// Adds a name with its answers.
    #[must_use]
    pub fn with(self, name: &str, answers: impl IntoIterator<Item = Vec<IpAddr>>) -> Self {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), answers.into_iter().collect());
        self
    }

    fn next_answer(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        let mut names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(answers) = names.get_mut(name) else { return Err(io::Error::other("no such name")) };
        if answers.len() > 1 { answers.pop_front() } else { answers.front().cloned() }
            .ok_or_else(|| io::Error::other("no answer"))
    }
}

impl DnsResolver {
    async fn lookup(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        match self {
            Self::System => Ok(tokio::net::lookup_host((name, 0)).await?.map(|address| address.ip()).collect()),
            Self::Scripted(script) => script.next_answer(name),
        }
    }
}

/// Why there is no connection. Never says more of the URL than its host.
#[derive(Debug, Clone)]
pub(super) struct ConnectError {
    pub(super) kind: PushErrorKind,
    pub(super) message: String,
}

impl ConnectError {
    fn new(kind: PushErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// The one that is behind an error of the client, if there is one.
    pub(super) fn find_in<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a Self> {
        error_chain(error).find_map(<dyn Error>::downcast_ref)
    }
}

/// An error, what caused it, and so on.
pub(super) fn error_chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error: &&'a (dyn Error + 'static)| <dyn Error>::source(*error))
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for ConnectError {}

impl From<&ConnectError> for PushFailure {
    fn from(error: &ConnectError) -> Self {
        Self::new(error.kind, error.message.clone())
    }
}

/// The addresses of a name that may be connected to.
#[derive(Debug, Clone)]
struct AllowedAddressResolver {
    dns: DnsResolver,
    allow_private: bool,
}

impl AllowedAddressResolver {
    async fn resolve_allowed(self, name: Name) -> Result<std::vec::IntoIter<SocketAddr>, ConnectError> {
        let found = self.dns.lookup(name.as_str()).await;
        let found = found.map_err(|error| ConnectError::new(PushErrorKind::DnsFailed, error.to_string()))?;
        let mut refused = None;
        let mut allowed = Vec::new();
        for address in found {
            match address::check(address, self.allow_private) {
                Ok(()) => allowed.push(SocketAddr::new(address, 0)),
                Err(error) => refused = Some(error),
            }
        }
        allowed.truncate(MAX_ADDRESSES);
        match refused {
            Some(refused) if allowed.is_empty() => {
                Err(ConnectError::new(PushErrorKind::AddressRefused, format!("of its addresses, {refused}")))
            }
            None if allowed.is_empty() => Err(ConnectError::new(PushErrorKind::DnsFailed, "it has no address")),
            _ => Ok(allowed.into_iter()),
        }
    }
}

impl Service<Name> for AllowedAddressResolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = ConnectError;
    type Future = ConnectFuture<Self::Response>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        Box::pin(self.clone().resolve_allowed(name))
    }
}

/// Connections to addresses that may be connected to, whether named or spelled.
#[derive(Debug, Clone)]
struct TcpConnector {
    http: HttpConnector<AllowedAddressResolver>,
    allow_private: bool,
}

impl Service<Uri> for TcpConnector {
    type Response = TokioIo<TcpStream>;
    type Error = ConnectError;
    type Future = ConnectFuture<Self::Response>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        self.http.poll_ready(context).map_err(|error| from_http(&error))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        // Resolvers are not asked for addresses that are spelled
        let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
        if let Some(Err(refused)) = host.parse().ok().map(|spelled| address::check(spelled, self.allow_private)) {
            return Box::pin(async move { Err(ConnectError::new(PushErrorKind::AddressRefused, refused.to_string())) });
        }
        let connecting = self.http.call(uri);
        Box::pin(async move { connecting.await.map_err(|error| from_http(&error)) })
    }
}

/// What [`HttpConnector`] says is the resolver's error, or one of the operating system.
fn from_http(error: &(dyn Error + 'static)) -> ConnectError {
    if let Some(error) = ConnectError::find_in(error) {
        return error.clone();
    }
    let cause = error_chain(error).last().unwrap_or(error);
    let is_timeout = cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::TimedOut);
    let kind = if is_timeout { PushErrorKind::ConnectTimeout } else { PushErrorKind::ConnectFailed };
    ConnectError::new(kind, cause.to_string())
}

/// Connections, with TLS where the scheme asks for it, within a limit of time.
#[derive(Clone)]
pub(super) struct PushConnector {
    https: HttpsConnector<TcpConnector>,
    timeout: Duration,
}

impl Service<Uri> for PushConnector {
    type Response = MaybeHttpsStream<TokioIo<TcpStream>>;
    type Error = ConnectError;
    type Future = ConnectFuture<Self::Response>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        self.https.poll_ready(context).map_err(|error| from_https(&error))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let (connecting, limit) = (self.https.call(uri), self.timeout);
        Box::pin(async move {
            match tokio::time::timeout(limit, connecting).await {
                Ok(connected) => connected.map_err(|error| from_https(&error)),
                Err(_) => Err(ConnectError::new(PushErrorKind::ConnectTimeout, "no connection in time")),
            }
        })
    }
}

/// What is not an error of TCP happened in the handshake.
fn from_https(error: &BoxError) -> ConnectError {
    let tcp: Option<&ConnectError> = error.downcast_ref();
    tcp.cloned().unwrap_or_else(|| ConnectError::new(PushErrorKind::TlsFailed, error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn connect(script: ScriptedDns, uri: &str, allow_private: bool) -> Result<(), ConnectError> {
        let network = Network::new(DnsResolver::Scripted(script), []).expect("TLS");
        let mut connector = network.connector(allow_private, Duration::from_secs(5));
        connector.call(uri.parse().expect("a URI")).await.map(drop)
    }

    #[tokio::test]
    async fn a_spelled_address_is_looked_at_where_connections_are_made() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let uri = format!("http://{}/", listener.local_addr().expect("bound"));
        assert_eq!(
            connect(ScriptedDns::default(), &uri, false).await.expect_err("refused").kind,
            PushErrorKind::AddressRefused
        );
        for uri in ["http://[::ffff:7f00:1]/", "https://[::1]:1/", "http://169.254.169.254/"] {
            let error = connect(ScriptedDns::default(), uri, false).await.expect_err(uri);
            assert_eq!(error.kind, PushErrorKind::AddressRefused, "{uri}");
        }
        assert!(connect(ScriptedDns::default(), &uri, true).await.is_ok());
    }

    #[tokio::test]
    async fn errors_are_told_apart() {
        let script =
            || ScriptedDns::default().with("none.test", [vec![]]).with("here.test", [vec![[127, 0, 0, 1].into()]]);
        // A port that nobody listens on: it was just given and given back
        let port = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound").port();
        for (uri, kind) in [
            ("http://unknown.test/".to_owned(), PushErrorKind::DnsFailed),
            ("http://none.test/".to_owned(), PushErrorKind::DnsFailed),
            (format!("http://here.test:{port}/"), PushErrorKind::ConnectFailed),
        ] {
            assert_eq!(connect(script(), &uri, true).await.expect_err(&uri).kind, kind, "{uri}");
        }
        let error = connect(script(), "http://here.test/", false).await.expect_err("refused");
        assert_eq!(error.kind, PushErrorKind::AddressRefused);
        assert!(error.message.contains("127.0.0.1 is refused: this machine"), "{}", error.message);
    }

    #[tokio::test]
    async fn the_machine_knows_itself() {
        Network::system().expect("TLS, with whatever certificates there are");
        let found = DnsResolver::System.lookup("localhost").await.expect("resolves");
        assert!(found.iter().all(IpAddr::is_loopback) && !found.is_empty(), "{found:?}");
    }
}
