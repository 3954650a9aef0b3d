//! TLS with rustls and ring: whom connections of this process trust, and the certificate that it shows.
//!
//! A certificate that changes on the disk is used for the connections that follow; those that are open stay open. A pair of
//! files that cannot be used changes nothing, and the log says so.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use anyhow::{Context, bail};
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio_util::sync::CancellationToken;

use crate::reloadable::{FileWatch, record_reload};

/// Makes ring the provider of this process, for libraries that ask for one.
pub fn use_ring() {
    // An error says that there is one already
    let _ = ring::default_provider().install_default();
}

/// Trusts the authorities in a PEM file, or those of this machine.
///
/// # Errors
/// There are none. `setting` is the setting that names the file.
pub fn client_config(setting: &str, ca_file: Option<&Path>) -> anyhow::Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    let authorities = match ca_file {
        Some(path) => read_certificates(setting, path)?,
        None => rustls_native_certs::load_native_certs().certs,
    };
    if roots.add_parsable_certificates(authorities).0 == 0 {
        match ca_file {
            Some(path) => bail!("{setting}: {} has no certificate that can be used", path.display()),
            None => bail!("this machine has no list of authorities: set {setting}"),
        }
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    Ok(config.with_safe_default_protocol_versions()?.with_root_certificates(roots).with_no_client_auth())
}

/// Trusts no authority: for clients that can speak TLS and do not.
///
/// # Errors
/// None that can happen: the provider has both versions.
pub fn trust_nobody() -> anyhow::Result<ClientConfig> {
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config = config.with_safe_default_protocol_versions()?;
    Ok(config.with_root_certificates(RootCertStore::empty()).with_no_client_auth())
}

/// Trusts any server: for a health check on this machine, which sends no secret and believes a status only. The
/// certificate is for the name that clients use.
///
/// # Errors
/// None that can happen: the provider has both versions.
pub fn trust_anybody() -> anyhow::Result<Arc<ClientConfig>> {
    let provider = Arc::new(ring::default_provider());
    let verifier = Arc::new(TrustAnybody(provider.clone()));
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(Arc::new(config.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth()))
}

#[derive(Debug)]
struct TrustAnybody(Arc<CryptoProvider>);

impl ServerCertVerifier for TrustAnybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

fn read_certificates(setting: &str, path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let text = fs::read(path).with_context(|| format!("{setting}: {} cannot be read", path.display()))?;
    parse_certificates(&text).with_context(|| format!("{setting}: {}", path.display()))
}

fn parse_certificates(text: &[u8]) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let found = CertificateDer::pem_slice_iter(text).collect::<Result<Vec<_>, _>>();
    let found = found.map_err(|_| anyhow::anyhow!("this is not PEM"))?;
    if found.is_empty() {
        bail!("no certificate in it");
    }
    Ok(found)
}

/// The certificate that a server shows, from two files.
pub struct ServerCertificate {
    cert_file: PathBuf,
    key_file: PathBuf,
    current: Arc<CurrentCertificate>,
    watch: FileWatch,
}

#[derive(Debug)]
struct CurrentCertificate(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for CurrentCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

impl ServerCertificate {
    /// Reads both files. Later they are looked at after each interval.
    ///
    /// # Errors
    /// They cannot be used.
    pub fn load(cert_file: PathBuf, key_file: PathBuf, interval: Duration) -> anyhow::Result<Self> {
        let watch = FileWatch::new([cert_file.clone(), key_file.clone()], interval);
        let certificate = certified_key(&cert_file, &key_file)?;
        let current = Arc::new(CurrentCertificate(RwLock::new(Arc::new(certificate))));
        Ok(Self { cert_file, key_file, current, watch })
    }

    /// TLS 1.2 and 1.3, HTTP/2 and HTTP/1.1, with whatever certificate is current.
    ///
    /// # Errors
    /// None that can happen: the provider has both versions.
    pub fn server_config(&self) -> anyhow::Result<Arc<ServerConfig>> {
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let config = config.with_safe_default_protocol_versions()?.with_no_client_auth();
        let mut config = config.with_cert_resolver(self.current.clone());
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    /// Uses what the files hold when that changed, until `stop` is cancelled.
    pub async fn keep_current(mut self, stop: CancellationToken) {
        while stop.run_until_cancelled(self.watch.changed()).await.is_some() {
            let replaced = certified_key(&self.cert_file, &self.key_file).map(|certificate| {
                *self.current.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(certificate);
            });
            record_reload("gateway.tls_cert_file", replaced.map_err(|error| format!("{error:#}")));
        }
    }
}

/// A certificate with its chain, and the key that belongs to it.
fn certified_key(cert_file: &Path, key_file: &Path) -> anyhow::Result<CertifiedKey> {
    let read = |path: &Path| fs::read(path).with_context(|| format!("{} cannot be read", path.display()));
    let (cert, key) = (read(cert_file)?, read(key_file)?);
    let chain = parse_certificates(&cert).with_context(|| cert_file.display().to_string())?;
    // Not the parser's own error, which may quote the key
    let key = PrivateKeyDer::from_pem_slice(&key)
        .map_err(|_| anyhow::anyhow!("{}: no private key in PEM", key_file.display()))?;
    CertifiedKey::from_der(chain, key, &ring::default_provider())
        .with_context(|| format!("{} and {} do not belong together", cert_file.display(), key_file.display()))
}
