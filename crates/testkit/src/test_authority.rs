//! An authority of a test's own, and certificates that it signs: files in a folder, as operators have them.

use std::{fs, net::SocketAddr, path::PathBuf, sync::Arc};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_rustls::{
    TlsAcceptor, TlsConnector,
    client::TlsStream,
    rustls::{
        ClientConfig, RootCertStore, ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    },
};

/// An authority.
pub struct TestAuthority {
    folder: TempDir,
    issuer: Issuer<'static, KeyPair>,
    der: Vec<u8>,
}

/// The files of a certificate and its key.
#[derive(Debug, Clone)]
pub struct CertificateFiles {
    /// The certificate.
    pub cert: String,
    /// Its private key.
    pub key: String,
}

impl Default for TestAuthority {
    fn default() -> Self {
        Self::new()
    }
}

impl TestAuthority {
    /// A new one, whom nobody trusts yet.
    ///
    /// # Panics
    /// The machine has no room for files.
    #[must_use]
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut params = params_of("test authority", &[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        fs::write(folder.path().join("ca.pem"), certificate.pem()).expect("a file");
        Self { folder, issuer: Issuer::new(params, key), der: certificate.der().to_vec() }
    }

    /// The file with its own certificate: who trusts it trusts what it signs.
    #[must_use]
    pub fn ca_file(&self) -> String {
        text(self.folder.path().join("ca.pem"))
    }

    /// Signs a certificate for these names and addresses. A second one under the same name of files replaces the first.
    ///
    /// # Panics
    /// The machine has no room for files.
    #[must_use]
    pub fn issue(&self, files: &str, names: &[&str]) -> CertificateFiles {
        let key = KeyPair::generate().expect("a key");
        let certificate = params_of(files, names).signed_by(&key, &self.issuer).expect("a certificate");
        let path = |extension: &str| self.folder.path().join(format!("{files}.{extension}"));
        fs::write(path("crt"), certificate.pem()).expect("a file");
        fs::write(path("key"), key.serialize_pem()).expect("a file");
        CertificateFiles { cert: text(path("crt")), key: text(path("key")) }
    }

    /// What a server of a test's own shows.
    ///
    /// # Panics
    /// The files cannot be used.
    #[must_use]
    pub fn acceptor(certificate: &CertificateFiles) -> TlsAcceptor {
        let chain = CertificateDer::pem_file_iter(&certificate.cert).expect("a file");
        let chain = chain.collect::<Result<Vec<_>, _>>().expect("certificates");
        let key = PrivateKeyDer::from_pem_file(&certificate.key).expect("a key");
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let config = config.with_safe_default_protocol_versions().expect("versions").with_no_client_auth();
        TlsAcceptor::from(Arc::new(config.with_single_cert(chain, key).expect("a pair")))
    }

    /// Connects as a client that trusts it, and offers these protocols.
    ///
    /// # Errors
    /// Nobody listens, or the handshake fails.
    ///
    /// # Panics
    /// `name` is no name of a host.
    pub async fn connect(
        &self,
        address: SocketAddr,
        name: &str,
        protocols: &[&str],
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(self.der.clone())).expect("a certificate");
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let config = config.with_safe_default_protocol_versions().expect("versions");
        let mut config = config.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        let name = ServerName::try_from(name.to_owned()).expect("a name");
        TlsConnector::from(Arc::new(config)).connect(name, TcpStream::connect(address).await?).await
    }
}

fn params_of(name: &str, names: &[&str]) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).expect("names");
    // OpenSSL takes a certificate whose names are those of its authority for one that signed itself
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

fn text(path: PathBuf) -> String {
    path.into_os_string().into_string().expect("UTF-8")
}
