//! Redis: where it is, who Galley is there, and whom it trusts.

use std::{fmt, path::PathBuf, time::Duration};

use secrecy::SecretString;
use url::Url;

use super::{
    SettingError,
    declare::section,
    error::invalid_value,
    kinds::{millis, number, optional_path, secret, switch, text_with, with_secret},
};

section! {
    /// Redis, which stores everything.
    pub struct RedisSettings = "redis" {
        /// URL of the server, of the sentinels that know the primary, or of nodes of a cluster; `rediss` is TLS. It can contain
        /// user and password, so never log it.
        "url" => url: RedisUrl = with_secret(text_with(REDIS_URL, "redis://127.0.0.1:6379/5", |key, text| {
            let url = RedisUrl(text);
            let allowed = if url.kind() == Some("cluster") { CLUSTER_URL } else { REDIS_URL };
            if is_redis_url(url.expose()) { Ok(url) } else { Err(invalid_value(key, allowed, format_args!("{url:?}"))) }
        }));
        /// User, if the URL names none. Empty: the default user.
        "username" => username: Option<String> =
            text_with("text, or empty", "", |_, name| Ok(Some(name).filter(|name| !name.is_empty())));
        /// Password, if the URL has none.
        "password" => password: Option<SecretString> = secret();
        /// User at the sentinels of a `redis+sentinel://` URL. Empty: the default user.
        "sentinel_username" => sentinel_username: Option<String> =
            text_with("text, or empty", "", |_, name| Ok(Some(name).filter(|name| !name.is_empty())));
        /// Password at the sentinels. Empty: none; the one of the URL is only for the servers.
        "sentinel_password" => sentinel_password: Option<SecretString> = secret();
        /// PEM file of the authorities that the certificate of a `rediss://` server is checked against. Empty: those of
        /// the machine or image.
        "tls_ca_file" => tls_ca_file: Option<PathBuf> = optional_path();
        /// PEM file of the certificate with which Galley identifies itself to a `rediss://` server, and the chain of it.
        "tls_cert_file" => tls_cert_file: Option<PathBuf> = optional_path();
        /// PEM file of the private key of `tls_cert_file`.
        "tls_key_file" => tls_key_file: Option<PathBuf> = optional_path();
        /// Name that the certificate of a `rediss://` server must have. Empty: the host of the URL, or the address of a server
        /// as the sentinels or the cluster say it.
        "tls_server_name" => tls_server_name: Option<String> = text_with(SERVER_NAME, "", |key, name| {
            if name.is_empty() {
                return Ok(None);
            }
            let has_allowed_characters = name.bytes().all(|b| b.is_ascii_alphanumeric() || b".-:_".contains(&b));
            if !has_allowed_characters || name.len() > 253 {
                return Err(invalid_value(key, SERVER_NAME, format_args!("{name:?}")));
            }
            Ok(Some(name))
        });
        /// Longest wait for a connection, with the handshake of TLS.
        "connect_timeout_ms" => connect_timeout: Duration = millis(10..=60_000, 1000);
        /// Longest wait for a reply. After it the connection is closed and opened again.
        "response_timeout_ms" => response_timeout: Duration = millis(50..=60_000, 2000);
        /// Connections in the pool, which serves work off the hot path.
        "pool_size" => pool_size: usize = number(1..=1000, 4);
    }
}

section! {
    /// What a write must have reached before a request that made it is answered with 201. If it has not in time, the answer is
    /// 202 with `Galley-Durability: unconfirmed`. With the values below, Redis's own answer is enough.
    pub struct DurabilitySettings = "durability" {
        /// Replicas that must have received it (`WAIT`). 0: none.
        "replicas" => replicas: u8 = number(0..=10, 0);
        /// Whether Redis, and that number of replicas, must have it on disk too (`WAITAOF`, Redis 7.2 or Valkey).
        "fsync" => fsync: bool = switch(false);
        /// Longest wait for that. With `appendfsync everysec`, `fsync` takes a second or two.
        "timeout_ms" => timeout: Duration = millis(10..=60_000, 3000);
    }
}

impl DurabilitySettings {
    /// Whether Redis's own answer is not enough.
    #[must_use]
    pub fn asks_for_more(&self) -> bool {
        self.replicas > 0 || self.fsync
    }
}

const REDIS_URL: &str = "redis://[user:password@]host[:port]/db, \
                         redis+sentinel://[user:password@]host[:port],host[:port]/name/db, \
                         redis+cluster://[user:password@]host[:port],host[:port], rediss for TLS, \
                         or redis+unix:///path?db=N, without a fragment";
const CLUSTER_URL: &str = "redis+cluster://[user:password@]host[:port],host[:port], with one node at least, without a name, \
                           and without a database other than 0, as a cluster has no other";
const SERVER_NAME: &str = "the name of a host or an address, or empty";

impl RedisSettings {
    /// What says the same twice, or nothing without the rest, is a mistake that would be hard to find later.
    pub(super) fn check(&self) -> Result<(), SettingError> {
        let files = [
            ("redis.tls_ca_file", &self.tls_ca_file),
            ("redis.tls_cert_file", &self.tls_cert_file),
            ("redis.tls_key_file", &self.tls_key_file),
        ];
        let name = ("redis.tls_server_name", self.tls_server_name.is_some());
        let mut of_tls = files.iter().map(|(key, path)| (*key, path.is_some())).chain([name]);
        if let Some((key, _)) = of_tls.find(|(_, is_set)| *is_set)
            && !self.url.is_tls()
        {
            let got = format_args!("a value, and the URL {:?}", self.url);
            return Err(invalid_value(key, "empty unless redis.url begins with rediss", got));
        }
        if self.tls_cert_file.is_some() != self.tls_key_file.is_some() {
            let allowed = "set together with redis.tls_key_file, or neither of them";
            return Err(invalid_value("redis.tls_cert_file", allowed, "one of them"));
        }
        let sentinels = self.url.sentinels();
        if sentinels.is_some() && self.tls_server_name.is_some() {
            let allowed = "empty if redis.url names sentinels: each server has a name of its own";
            return Err(invalid_value("redis.tls_server_name", allowed, "a name"));
        }
        if self.url.cluster().is_some() && self.tls_server_name.is_some() {
            let allowed = "empty if redis.url names a cluster: each node has a name of its own";
            return Err(invalid_value("redis.tls_server_name", allowed, "a name"));
        }
        for (key, is_set) in [
            ("redis.sentinel_username", self.sentinel_username.is_some()),
            ("redis.sentinel_password", self.sentinel_password.is_some()),
        ] {
            if is_set && sentinels.is_none() {
                return Err(invalid_value(key, "empty unless redis.url begins with redis+sentinel://", "a value"));
            }
        }
        if self.sentinel_username.is_some() && self.sentinel_password.is_none() {
            let allowed = "empty unless redis.sentinel_password is set";
            return Err(invalid_value("redis.sentinel_username", allowed, "a name"));
        }
        let (url_has_user, url_has_password) = self.url.has_credentials();
        for (key, is_set, is_in_url) in [
            ("redis.username", self.username.is_some(), url_has_user),
            ("redis.password", self.password.is_some(), url_has_password),
        ] {
            if is_set && is_in_url {
                let first = key.to_owned();
                return Err(SettingError::Conflict { first, second: "the same in redis.url".to_owned() });
            }
        }
        if self.username.is_some() && self.password.is_none() && !url_has_password {
            return Err(invalid_value("redis.username", "empty unless there is a password", "a name"));
        }
        Ok(())
    }
}

/// A Redis URL that parsed. Its debug form leaves the password out.
#[derive(Clone)]
pub struct RedisUrl(String);

impl RedisUrl {
    /// A URL that is shown and not used.
    pub(super) fn unchecked(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// The URL with its secrets.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether its connections are encrypted.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        let scheme = self.0.split_once("://").map_or("", |(scheme, _)| scheme);
        ["rediss", "rediss+sentinel", "rediss+cluster"].iter().any(|tls| scheme.eq_ignore_ascii_case(tls))
    }

    /// What it names, if that is not one server: `sentinel` or `cluster`.
    fn kind(&self) -> Option<&'static str> {
        let (_, kind) = self.0.split_once("://")?.0.split_once('+')?;
        ["sentinel", "cluster"].into_iter().find(|known| kind.eq_ignore_ascii_case(known))
    }

    /// For each node of a cluster that it names the URL of a server at its address, with the user and the password.
    #[must_use]
    pub fn cluster(&self) -> Option<Vec<String>> {
        let (urls, path) = urls_of_hosts(&self.0, "cluster", 6379, |_| "0".to_owned())?;
        ["", "0"].contains(&path).then_some(urls)
    }

    /// The sentinels, if it names these and not the server.
    #[must_use]
    pub fn sentinels(&self) -> Option<SentinelUrls> {
        SentinelUrls::parse(&self.0)
    }

    /// The URL without user and password, for logs.
    #[must_use]
    pub fn redacted(&self) -> String {
        // A query may hold a password too; user and password end at the last @ before it
        let (base, query) = self.0.split_once('?').map_or((self.0.as_str(), ""), |(base, _)| (base, "?…"));
        match (base.split_once("://"), base.rsplit_once('@')) {
            (Some((scheme, _)), Some((_, rest))) => format!("{scheme}://…@{rest}{query}"),
            _ => format!("{base}{query}"),
        }
    }

    /// Whether it names a user, and a password.
    fn has_credentials(&self) -> (bool, bool) {
        let of_several = self.sentinels().map(|sentinels| sentinels.urls).or_else(|| self.cluster());
        let first = of_several.and_then(|urls| urls.into_iter().next());
        let Ok(url) = Url::parse(first.as_ref().unwrap_or(&self.0)) else { return (false, false) };
        let in_query = |name: &str| url.query_pairs().any(|(key, value)| key == name && !value.is_empty());
        (!url.username().is_empty() || in_query("user"), url.password().is_some() || in_query("pass"))
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.redacted())
    }
}

/// A `redis+sentinel://` URL, taken apart.
#[derive(Clone, PartialEq, Eq)]
pub struct SentinelUrls {
    /// What the sentinels call the primary.
    pub primary_name: String,
    /// For each sentinel the URL of a server at its address, with the user, the password and the database of the primary.
    pub urls: Vec<String>,
}

impl SentinelUrls {
    fn parse(text: &str) -> Option<Self> {
        let database = |path: &str| path.split_once('/').map_or("", |(_, database)| database).to_owned();
        let (urls, path) = urls_of_hosts(text, "sentinel", SENTINEL_PORT, database)?;
        let primary_name = path.split_once('/').map_or(path, |(name, _)| name);
        let is_name = |b: u8| b.is_ascii_alphanumeric() || b".-_".contains(&b);
        if !text.split_once("://")?.1.contains('/') || primary_name.is_empty() || !primary_name.bytes().all(is_name) {
            return None;
        }
        Some(Self { primary_name: primary_name.to_owned(), urls })
    }
}

/// For each host of a URL of that kind the URL of a server there, and the path of the whole. `database` is what the path says
/// of it.
fn urls_of_hosts<'a>(
    text: &'a str,
    kind: &str,
    default_port: u16,
    database: impl Fn(&str) -> String,
) -> Option<(Vec<String>, &'a str)> {
    let (scheme, rest) = text.split_once("://")?;
    let (scheme, found) = scheme.split_once('+')?;
    if !found.eq_ignore_ascii_case(kind) || rest.contains(['?', '#']) {
        return None;
    }
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    // A password may hold @ and commas
    let hosts = authority.rsplit('@').next()?;
    let credentials = authority.strip_suffix(hosts)?;
    let database = database(path);
    let url_of = |host: &str| {
        let mut url = Url::parse(&format!("{scheme}://{credentials}{host}/{database}")).ok()?;
        if url.port().is_none() {
            url.set_port(Some(default_port)).ok()?;
        }
        ["redis", "rediss"].contains(&url.scheme()).then_some(url).filter(is_server_url).map(String::from)
    };
    Some((hosts.split(',').map(url_of).collect::<Option<_>>()?, path))
}

/// Where sentinels listen if nobody says otherwise.
const SENTINEL_PORT: u16 = 26379;

/// Whether the client accepts the URL. The store parses it again, but here the error can name the setting.
fn is_redis_url(text: &str) -> bool {
    let is_cluster = || RedisUrl(text.to_owned()).cluster().is_some();
    SentinelUrls::parse(text).is_some() || is_cluster() || Url::parse(text).is_ok_and(|url| is_server_url(&url))
}

fn is_server_url(url: &Url) -> bool {
    let database = url.path().trim_start_matches('/');
    // The fragment `#insecure` would switch the check of certificates off
    let is_known = match url.scheme() {
        "redis" | "rediss" => url.has_host() && (database.is_empty() || database.parse::<u32>().is_ok()),
        "redis+unix" | "unix" => !database.is_empty(),
        _ => false,
    };
    is_known && url.fragment().is_none()
}
