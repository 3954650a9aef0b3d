//! Connections with TLS: who is trusted.

use std::{sync::Arc, time::Duration};

use delivery::http::{DnsResolver, Endpoint, EndpointSettings, Network, ScriptedDns};
use rcgen::{CertifiedKey, KeyPair, generate_simple_self_signed};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{ServerConfig, crypto::ring, pki_types::PrivateKeyDer},
};

use crate::kit::{Server, WebhookReply, post, post_error, settings};

fn certificate() -> CertifiedKey<KeyPair> {
    generate_simple_self_signed(["here.test".to_owned()]).expect("a certificate")
}

async fn server(certificate: &CertifiedKey<KeyPair>) -> Server {
    let key = PrivateKeyDer::try_from(certificate.signing_key.serialize_der()).expect("a key");
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate.cert.der().clone()], key)
        .expect("a certificate and its key");
    Server::start_with_tls([WebhookReply::ok("1")], TlsAcceptor::from(Arc::new(config))).await
}

fn network(trusted: &CertifiedKey<KeyPair>) -> Network {
    let here = || [vec![[127, 0, 0, 1].into()]];
    let script = ScriptedDns::default().with("here.test", here()).with("there.test", here());
    Network::new(DnsResolver::Scripted(script), [trusted.cert.der().clone()]).expect("TLS")
}

fn endpoint(host: &str, server: &Server, trusted: &CertifiedKey<KeyPair>) -> Endpoint {
    let url = format!("https://{host}:{}/", server.address.port());
    Endpoint::new(settings(&url), &network(trusted)).expect("allowed")
}

#[tokio::test]
async fn a_server_with_a_trusted_certificate_for_its_name_is_sent_to() {
    let certificate = certificate();
    let server = server(&certificate).await;
    post(&endpoint("here.test", &server, &certificate)).await.expect("trusted");
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test]
async fn another_certificate_or_another_name_is_not_trusted() {
    let (known, other) = (certificate(), certificate());
    let tls = server(&known).await;
    for (host, server, trusted) in [("here.test", &tls, &other), ("there.test", &tls, &known)] {
        let error = post_error(&endpoint(host, server, trusted)).await;
        assert_eq!(error.code, "push_tls_failed", "{}", error.message);
        assert!(error.message.contains("certificate"), "{}", error.message);
        assert!(server.requests().is_empty());
    }
}

#[tokio::test]
async fn a_server_without_tls_is_not_sent_to() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("https://here.test:{}/", listener.local_addr().expect("bound").port());
    let plain = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.expect("it listens");
        let mut got = Vec::new();
        let _ = stream.read_to_end(&mut got).await;
        got
    });
    let error = post_error(&Endpoint::new(settings(&url), &network(&certificate())).expect("allowed")).await;
    assert_eq!(error.code, "push_tls_failed", "{}", error.message);
    let got = plain.await.expect("no panic");
    assert!(!got.windows(4).any(|four| four == b"POST"), "{got:?}");
}

#[tokio::test]
async fn a_handshake_that_does_not_end_is_given_up() {
    let certificate = certificate();
    // Takes the connection and says nothing: it waits for the end of a head that never comes
    let silent = Server::start([WebhookReply::Hang]).await;
    let url = format!("https://here.test:{}/", silent.address.port());
    let settings = EndpointSettings { connect_timeout: Duration::from_secs(1), ..settings(&url) };
    let error = post_error(&Endpoint::new(settings, &network(&certificate)).expect("allowed")).await;
    assert_eq!(error.code, "push_connect_timeout", "{}", error.message);
    testkit::eventually("a closed connection", || async { (silent.closed_connections() == 1).then_some(()) }).await;
}
