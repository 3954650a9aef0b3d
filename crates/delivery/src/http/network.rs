//! Connections: all pushes go through here.
//!
//! An address is checked when it is known and used at once: a name is resolved once for each connection, refused
//! addresses are dropped, and the remaining ones are connected to, so a changed DNS answer has no effect in between.
//! There are no proxies, cookies or redirects.

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
    status_probe::ProbedStream,
};

/// Maximum number of addresses of a name that are tried, one after the other.
const MAX_ADDRESSES: usize = 8;

type ConnectFuture<T> = Pin<Box<dyn std::future::Future<Output = Result<T, ConnectError>> + Send>>;
type BoxError = Box<dyn Error + Send + Sync>;

/// What endpoints share: DNS and trusted certificates.
#[derive(Debug, Clone)]
pub struct Network {
    dns: DnsResolver,
    tls: ClientConfig,
    root_count: usize,
}

impl Network {
    /// The machine's resolver and root certificates. Create it once per process, because it reads many files.
    ///
    /// # Errors
    /// TLS cannot be set up. Missing root certificates are an error only for `https`.
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
        // Some machines have a few certificates that are too old to parse
        let (roots, _ignored) = store.add_parsable_certificates(roots);
        // Set here and not as the process's default, which other users would have to share
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
        // Shared among the addresses of a name, so that a silent one leaves time for the next
        http.set_connect_timeout(Some(timeout));
        let https = HttpsConnectorBuilder::new()
            .with_tls_config(self.tls.clone())
            .https_or_http()
            .enable_http1()
            .wrap_connector(TcpConnector { http, allow_private });
        PushConnector { https, timeout }
    }
}

/// How names are resolved.
#[derive(Debug, Clone)]
pub enum DnsResolver {
    /// By the machine's resolver.
    System,
    /// By a test's script.
    Scripted(ScriptedDns),
}

/// Answers for names, one after the other; the last one repeats. Other names do not exist.
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

/// Why there is no connection. Of the URL it shows only the host.
#[derive(Debug, Clone)]
pub(super) struct ConnectError {
    pub(super) kind: PushErrorKind,
    pub(super) message: String,
}

impl ConnectError {
    fn new(kind: PushErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// The connect error behind an error of the client, if there is one.
    pub(super) fn find_in<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a Self> {
        error_chain(error).find_map(<dyn Error>::downcast_ref)
    }
}

/// An error, its cause, and so on.
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

/// Resolves a name to its allowed addresses.
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

/// Connects to allowed addresses, given as names or literally.
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
        // The resolver is not asked for literal addresses
        let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
        if let Some(Err(refused)) = host.parse().ok().map(|spelled| address::check(spelled, self.allow_private)) {
            return Box::pin(async move { Err(ConnectError::new(PushErrorKind::AddressRefused, refused.to_string())) });
        }
        let connecting = self.http.call(uri);
        Box::pin(async move { connecting.await.map_err(|error| from_http(&error)) })
    }
}

/// An error of [`HttpConnector`] is the resolver's, or the operating system's.
fn from_http(error: &(dyn Error + 'static)) -> ConnectError {
    if let Some(error) = ConnectError::find_in(error) {
        return error.clone();
    }
    let cause = error_chain(error).last().unwrap_or(error);
    let is_timeout = cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::TimedOut);
    let kind = if is_timeout { PushErrorKind::ConnectTimeout } else { PushErrorKind::ConnectFailed };
    ConnectError::new(kind, cause.to_string())
}

/// Connects, with TLS for `https`, within a time limit.
#[derive(Clone)]
pub(super) struct PushConnector {
    https: HttpsConnector<TcpConnector>,
    timeout: Duration,
}

impl Service<Uri> for PushConnector {
    type Response = ProbedStream<MaybeHttpsStream<TokioIo<TcpStream>>>;
    type Error = ConnectError;
    type Future = ConnectFuture<Self::Response>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        self.https.poll_ready(context).map_err(|error| from_https(&error))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let (connecting, limit) = (self.https.call(uri), self.timeout);
        Box::pin(async move {
            match tokio::time::timeout(limit, connecting).await {
                Ok(connected) => connected.map(ProbedStream::new).map_err(|error| from_https(&error)),
                Err(_) => Err(ConnectError::new(PushErrorKind::ConnectTimeout, "no connection in time")),
            }
        })
    }
}

/// Errors that are not TCP's come from the TLS handshake.
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
        // A port without a listener: it was just closed
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
