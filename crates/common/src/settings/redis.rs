//! Redis: where it is, who Galley is there, and whom it trusts.

use std::{fmt, path::PathBuf, time::Duration};

use secrecy::SecretString;
use url::Url;

use super::{
    SettingError,
    declare::section,
    error::invalid_value,
    kinds::{millis, number, optional_path, secret, text_with, with_secret},
};

section! {
    /// Redis, which stores everything.
    pub struct RedisSettings = "redis" {
        /// URL of the server; `rediss://` is TLS. It can contain user and password, so never log it.
        "url" => url: RedisUrl = with_secret(text_with(REDIS_URL, "redis://127.0.0.1:6379/5", |key, text| {
            let url = RedisUrl(text);
            if !is_redis_url(url.expose()) {
                return Err(invalid_value(key, REDIS_URL, format_args!("{url:?}")));
            }
            Ok(url)
        }));
        /// User, if the URL names none. Empty: the default user.
        "username" => username: Option<String> =
            text_with("text, or empty", "", |_, name| Ok(Some(name).filter(|name| !name.is_empty())));
        /// Password, if the URL has none.
        "password" => password: Option<SecretString> = secret();
        /// PEM file of the authorities that the certificate of a `rediss://` server is checked against. Empty: those of
        /// the machine or image.
        "tls_ca_file" => tls_ca_file: Option<PathBuf> = optional_path();
        /// PEM file of the certificate with which Galley identifies itself to a `rediss://` server, and the chain of it.
        "tls_cert_file" => tls_cert_file: Option<PathBuf> = optional_path();
        /// PEM file of the private key of `tls_cert_file`.
        "tls_key_file" => tls_key_file: Option<PathBuf> = optional_path();
        /// Name that the certificate of a `rediss://` server must have. Empty: the host of the URL.
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

const REDIS_URL: &str =
    "redis://[user:password@]host[:port]/db, rediss:// for TLS, or redis+unix:///path?db=N, without a fragment";
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
            return Err(invalid_value(key, "empty unless redis.url begins with rediss://", got));
        }
        if self.tls_cert_file.is_some() != self.tls_key_file.is_some() {
            let allowed = "set together with redis.tls_key_file, or neither of them";
            return Err(invalid_value("redis.tls_cert_file", allowed, "one of them"));
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
        self.0.get(..9).is_some_and(|scheme| scheme.eq_ignore_ascii_case("rediss://"))
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
        let Ok(url) = Url::parse(&self.0) else { return (false, false) };
        let in_query = |name: &str| url.query_pairs().any(|(key, value)| key == name && !value.is_empty());
        (!url.username().is_empty() || in_query("user"), url.password().is_some() || in_query("pass"))
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.redacted())
    }
}

/// Whether the client accepts the URL. The store parses it again, but here the error can name the setting.
fn is_redis_url(text: &str) -> bool {
    let Ok(url) = Url::parse(text) else { return false };
    let database = url.path().trim_start_matches('/');
    // The fragment `#insecure` would switch the check of certificates off
    let is_known = match url.scheme() {
        "redis" | "rediss" => url.has_host() && (database.is_empty() || database.parse::<u32>().is_ok()),
        "redis+unix" | "unix" => !database.is_empty(),
        _ => false,
    };
    is_known && url.fragment().is_none()
}
