//! Asks sentinels which server is the primary.

use common::settings::{RedisSettings, SentinelUrls};
use futures_util::Stream;
use redis::{
    Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, Msg, RedisResult, TlsCertificates, TlsMode,
    sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType},
};
use secrecy::{ExposeSecret, SecretString};

/// The sentinels of a primary.
pub(super) struct Sentinels {
    addresses: Vec<ConnectionAddr>,
    primary_name: String,
    username: Option<String>,
    password: Option<SecretString>,
    /// Who Galley is at the primary, and which database it uses there.
    at_primary: ConnectionInfo,
    /// With TLS: of the sentinels and of the primary.
    certificates: Option<TlsCertificates>,
}

impl Sentinels {
    pub(super) fn new(
        urls: &SentinelUrls,
        settings: &RedisSettings,
        at_primary: &ConnectionInfo,
        certificates: Option<TlsCertificates>,
    ) -> RedisResult<Self> {
        let address = |url: &String| Ok(url.as_str().into_connection_info()?.addr().clone());
        Ok(Self {
            addresses: urls.urls.iter().map(address).collect::<RedisResult<_>>()?,
            primary_name: urls.primary_name.clone(),
            username: settings.sentinel_username.clone(),
            password: settings.sentinel_password.clone(),
            at_primary: at_primary.clone(),
            certificates,
        })
    }

    /// A client of the primary: a server that a sentinel calls by the name, and that says of itself that it is one. Of
    /// sentinels that disagree, the first of the URL counts.
    pub(super) async fn find_primary(&self) -> RedisResult<Client> {
        // In a box, because a question that is rare must not make the futures of every start and reconnect large
        Box::pin(self.client()?.async_get_client()).await
    }

    /// What the first sentinel that answers says of primaries that moved.
    pub(super) async fn moves(&self) -> RedisResult<impl Stream<Item = Msg> + use<>> {
        let sentinel = self.client()?.async_get_sentinel_client().await?;
        let mut said = sentinel.get_async_pubsub().await?;
        said.subscribe("+switch-master").await?;
        Ok(said.into_on_message())
    }

    /// Every question opens connections of its own: it is rare, and those from before may have broken with the primary.
    fn client(&self) -> RedisResult<SentinelClient> {
        let (addresses, redis) = (self.addresses.clone(), self.at_primary.redis_settings());
        let mut builder = SentinelClientBuilder::new(addresses, &self.primary_name, SentinelServerType::Master)?
            .set_client_to_redis_db(redis.db())
            .set_client_to_redis_protocol(redis.protocol())
            .set_client_to_redis_tcp_settings(self.at_primary.tcp_settings().clone());
        if let Some(username) = redis.username() {
            builder = builder.set_client_to_redis_username(username);
        }
        if let Some(password) = redis.password() {
            builder = builder.set_client_to_redis_password(password);
        }
        if let Some(username) = &self.username {
            builder = builder.set_client_to_sentinel_username(username);
        }
        if let Some(password) = &self.password {
            builder = builder.set_client_to_sentinel_password(password.expose_secret());
        }
        if let Some(certificates) = &self.certificates {
            builder = builder
                .set_client_to_redis_tls_mode(TlsMode::Secure)
                .set_client_to_redis_certificates(certificates.clone())
                .set_client_to_sentinel_certificates(certificates.clone());
        }
        builder.build()
    }

    /// A client of the same server with these certificates.
    pub(super) fn client_of(&self, server: &ConnectionInfo) -> RedisResult<Client> {
        match &self.certificates {
            Some(certificates) => Client::build_with_tls(server.clone(), certificates.clone()),
            None => Client::open(server.clone()),
        }
    }
}
