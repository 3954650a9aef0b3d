//! Where the server is, who Galley is there, and with which TLS: for every connection to Redis the same.

use std::{
    net::SocketAddr,
    path::Path,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use anyhow::{Context, bail};
use common::settings::{RedisSettings, SentinelUrls};
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, ConnectionAddr, ConnectionInfo, IntoConnectionInfo,
    ProtocolVersion, RedisFuture, RedisResult, TlsCertificates, io::AsyncDNSResolver,
};
use rustls::{
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use secrecy::ExposeSecret;

use super::{client::cluster::NodeAddress, sentinels::Sentinels};

/// How connections to the server are opened.
pub(super) struct ServerAddress {
    /// Of the server; with sentinels of the primary that they named last. Until then it is of a sentinel, and not used.
    client: RwLock<Client>,
    sentinels: Option<RwLock<Arc<Sentinels>>>,
    /// Resolves the host of the URL when the certificate has another name.
    resolver: Option<HostResolver>,
}

impl ServerAddress {
    /// Reads the files of certificates. A node of a cluster has another address than the URL.
    ///
    /// # Errors
    /// The URL or a file cannot be used.
    pub(super) fn new(settings: &RedisSettings, node: Option<&NodeAddress>) -> anyhow::Result<Self> {
        let sentinels = settings.url.sentinels();
        let several = sentinels.as_ref().map(|sentinels| sentinels.urls.clone()).or_else(|| settings.url.cluster());
        let url = several.as_ref().and_then(|urls| urls.first()).map_or(settings.url.expose(), String::as_str);
        let info = connection_info(url, settings)?;
        let info = node.map_or(info.clone(), |node| at_node(info, node));
        if !settings.url.is_tls() {
            let sentinels = sentinels.map(|urls| Sentinels::new(&urls, settings, &info, None)).transpose()?;
            return Ok(Self::of(Client::open(info)?, sentinels, None));
        }
        // Programs that use this as a library may have chosen another one
        let _ = ring::default_provider().install_default();
        let certificates =
            TlsCertificates { client_tls: client_identity(settings)?, root_cert: Some(roots(settings)?) };
        let of = |urls: SentinelUrls| Sentinels::new(&urls, settings, &info, Some(certificates.clone()));
        let sentinels = sentinels.map(of).transpose()?;
        let (info, resolver) = with_server_name(info, settings.tls_server_name.as_deref())?;
        Ok(Self::of(Client::build_with_tls(info, certificates)?, sentinels, resolver))
    }

    fn of(client: Client, sentinels: Option<Sentinels>, resolver: Option<HostResolver>) -> Self {
        let sentinels = sentinels.map(|sentinels| RwLock::new(Arc::new(sentinels)));
        Self { client: RwLock::new(client), sentinels, resolver }
    }

    /// Whether sentinels know where the server is.
    pub(super) fn has_sentinels(&self) -> bool {
        self.sentinels.is_some()
    }

    /// The sentinels, with the certificates as they are now.
    pub(super) fn sentinels(&self) -> Option<Arc<Sentinels>> {
        Some(self.sentinels.as_ref()?.read().unwrap_or_else(PoisonError::into_inner).clone())
    }

    /// Asks the sentinels for the primary, if there are any. True if it is another server than before.
    ///
    /// # Errors
    /// No sentinel names one that can be reached and says that it is the primary.
    pub(super) async fn find_primary(&self) -> RedisResult<bool> {
        let Some(sentinels) = self.sentinels() else { return Ok(false) };
        let found = sentinels.find_primary().await?;
        let mut client = self.client.write().unwrap_or_else(PoisonError::into_inner);
        let is_another = client.get_connection_info().addr() != found.get_connection_info().addr();
        *client = found;
        Ok(is_another)
    }

    /// Opens connections with the certificates as they are now.
    pub(super) fn client(&self) -> Client {
        self.client.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The same for the pool.
    pub(super) fn info(&self) -> ConnectionInfo {
        self.client().get_connection_info().clone()
    }

    /// Uses the certificates of `other`, which is of the same settings.
    ///
    /// # Errors
    /// There is no client with them.
    pub(super) fn replace(&self, other: &Self) -> RedisResult<()> {
        let mut new = other.client();
        let mut client = self.client.write().unwrap_or_else(PoisonError::into_inner);
        if let (Some(sentinels), Some(of_other)) = (&self.sentinels, &other.sentinels) {
            let of_other = of_other.read().unwrap_or_else(PoisonError::into_inner).clone();
            new = of_other.client_of(client.get_connection_info())?;
            *sentinels.write().unwrap_or_else(PoisonError::into_inner) = of_other;
        }
        *client = new;
        Ok(())
    }

    /// The configuration of connections whose answers come within `response_timeout`.
    pub(super) fn config(&self, settings: &RedisSettings, response_timeout: Duration) -> AsyncConnectionConfig {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(settings.connect_timeout))
            .set_response_timeout(Some(response_timeout));
        match &self.resolver {
            Some(resolver) => config.set_dns_resolver(resolver.clone()),
            None => config,
        }
    }
}

fn connection_info(url: &str, settings: &RedisSettings) -> anyhow::Result<ConnectionInfo> {
    let info = url.into_connection_info()?;
    // The name of the library needs CLIENT SETINFO, which an ACL for Redis 7.0 cannot name: newer servers would note a denial
    let mut redis = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3).set_skip_set_lib_name();
    if let Some(username) = &settings.username {
        redis = redis.set_username(username);
    }
    if let Some(password) = &settings.password {
        redis = redis.set_password(password.expose_secret());
    }
    let tcp = info.tcp_settings().clone().set_nodelay(true);
    Ok(info.set_redis_settings(redis).set_tcp_settings(tcp))
}

/// The same for a node of a cluster.
fn at_node(info: ConnectionInfo, NodeAddress { host, port }: &NodeAddress) -> ConnectionInfo {
    let (host, port) = (host.clone(), *port);
    let address = match info.addr() {
        ConnectionAddr::TcpTls { insecure, tls_params, .. } => {
            ConnectionAddr::TcpTls { host, port, insecure: *insecure, tls_params: tls_params.clone() }
        }
        _ => ConnectionAddr::Tcp(host, port),
    };
    info.set_addr(address)
}

/// The client checks certificates against the name that it connects to. For another name it connects to that one, and
/// the resolver gives the addresses of the real host.
fn with_server_name(
    info: ConnectionInfo,
    name: Option<&str>,
) -> anyhow::Result<(ConnectionInfo, Option<HostResolver>)> {
    let ConnectionAddr::TcpTls { host, port, insecure, .. } = info.addr() else {
        bail!("redis.url has no host to connect to with TLS");
    };
    let Some(name) = name else { return Ok((info, None)) };
    let resolver = HostResolver(Arc::from(host.as_str()));
    let addr = ConnectionAddr::TcpTls { host: name.to_owned(), port: *port, insecure: *insecure, tls_params: None };
    Ok((info.set_addr(addr), Some(resolver)))
}

#[derive(Clone)]
struct HostResolver(Arc<str>);

impl AsyncDNSResolver for HostResolver {
    fn resolve<'a, 'b: 'a>(
        &'a self,
        _: &'b str,
        port: u16,
    ) -> RedisFuture<'a, Box<dyn Iterator<Item = SocketAddr> + Send + 'a>> {
        Box::pin(async move {
            let addresses = tokio::net::lookup_host((&*self.0, port)).await?;
            Ok(Box::new(addresses.collect::<Vec<_>>().into_iter()) as Box<dyn Iterator<Item = SocketAddr> + Send>)
        })
    }
}

/// The authorities that are trusted, as PEM.
fn roots(settings: &RedisSettings) -> anyhow::Result<Vec<u8>> {
    if let Some(path) = &settings.tls_ca_file {
        let (text, _) = certificates("redis.tls_ca_file", path)?;
        return Ok(text);
    }
    // Without them the client would read the machine's for each connection
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        let problem = found.errors.first().map_or("there are none".to_owned(), ToString::to_string);
        bail!("the authorities of this machine cannot be read ({problem}): set redis.tls_ca_file");
    }
    Ok(found.certs.iter().flat_map(|certificate| pem_of(certificate).into_bytes()).collect())
}

fn pem_of(certificate: &CertificateDer<'_>) -> String {
    use base64::{Engine, prelude::BASE64_STANDARD};
    let text = BASE64_STANDARD.encode(certificate);
    // Base64 is ASCII, so any cut is between characters
    let lines: Vec<&str> = (0..text.len()).step_by(64).map(|at| &text[at..text.len().min(at + 64)]).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

fn client_identity(settings: &RedisSettings) -> anyhow::Result<Option<ClientTlsConfig>> {
    let (Some(cert_path), Some(key_path)) = (&settings.tls_cert_file, &settings.tls_key_file) else { return Ok(None) };
    let (client_cert, chain) = certificates("redis.tls_cert_file", cert_path)?;
    let client_key = read_file("redis.tls_key_file", key_path)?;
    let key = PrivateKeyDer::from_pem_slice(&client_key)
        .map_err(|_| anyhow::anyhow!("redis.tls_key_file: {} has no private key in PEM", key_path.display()))?;
    // Here the error can name the files; later each connection would fail
    rustls::sign::CertifiedKey::from_der(chain, key, &ring::default_provider()).map_err(|error| {
        let (cert, key) = (cert_path.display(), key_path.display());
        anyhow::anyhow!("redis.tls_cert_file and redis.tls_key_file: {cert} and {key} cannot be used: {error}")
    })?;
    Ok(Some(ClientTlsConfig { client_cert, client_key }))
}

/// The text of a file, and the certificates in it, of which there is at least one.
fn certificates(key: &str, path: &Path) -> anyhow::Result<(Vec<u8>, Vec<CertificateDer<'static>>)> {
    let text = read_file(key, path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok((text, found)),
        _ => bail!("{key}: {} has no certificate in PEM", path.display()),
    }
}

fn read_file(key: &str, path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("{key}: {} cannot be read", path.display()))
}
