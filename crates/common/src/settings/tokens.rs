//! Tokens and limits of keys: the tables below `auth`.

use std::{path::PathBuf, time::Duration};

use secrecy::{ExposeSecret, SecretString};

use super::{
    SettingError,
    declare::{Section, section},
    error::invalid_value,
    kinds::{bytes, millis, number, optional_path, secret, text_with, zero_or},
};

/// The shortest secret that signs tokens, in bytes: as long as the hash.
pub const MIN_TOKEN_SECRET_BYTES: usize = 32;

/// The tables below `auth`.
#[derive(Debug, Clone)]
pub struct TokenTables {
    /// Tokens of an issuer.
    pub jwt: JwtSettings,
    /// Tokens that the gateway makes.
    pub tokens: TokenSettings,
    /// Limits of keys that bring none.
    pub limits: KeyLimitSettings,
}

impl TokenTables {
    pub(super) fn read(auth: &mut Section) -> Result<Self, SettingError> {
        Ok(Self {
            jwt: auth.section("jwt", JwtSettings::read)?,
            tokens: auth.section("tokens", TokenSettings::read)?,
            limits: auth.section("limits", KeyLimitSettings::read)?,
        })
    }

    /// What single settings do not show.
    pub(super) fn check(&self) -> Result<(), SettingError> {
        let given = |is_given: bool| usize::from(is_given);
        let jwt = &self.jwt;
        let sources = given(jwt.hs256.is_some()) + given(jwt.jwks_file.is_some()) + given(jwt.jwks_url.is_some());
        if sources > 1 {
            let allowed = "set at most one of auth.jwt.hs256_secret, auth.jwt.jwks_file and auth.jwt.jwks_url";
            return Err(invalid_value("auth.jwt", allowed, format_args!("{sources} of them")));
        }
        if sources == 0 && (jwt.issuer.is_some() || jwt.audience.is_some()) {
            let allowed = "with auth.jwt.hs256_secret, auth.jwt.jwks_file or auth.jwt.jwks_url, which verify tokens";
            return Err(invalid_value("auth.jwt.issuer", allowed, "none of them"));
        }
        let secrets = [
            ("auth.jwt.hs256_secret", &jwt.hs256),
            ("auth.tokens.secret", &self.tokens.signing),
            ("auth.tokens.previous_secret", &self.tokens.previous),
        ];
        for (key, secret) in secrets {
            let length = secret.as_ref().map_or(usize::MAX, |secret| secret.expose_secret().len());
            if length < MIN_TOKEN_SECRET_BYTES {
                let allowed = format!("a secret of at least {MIN_TOKEN_SECRET_BYTES} bytes");
                return Err(invalid_value(key, allowed, format_args!("{length} bytes")));
            }
        }
        if self.tokens.signing.is_none() && self.tokens.previous.is_some() {
            return Err(invalid_value("auth.tokens.previous_secret", "empty without auth.tokens.secret", "a secret"));
        }
        Ok(())
    }
}

section! {
    /// Tokens of an issuer (JWT). They are accepted where keys are, once one of `hs256_secret`, `jwks_file` and `jwks_url`
    /// is set: `docs/security.md`.
    pub struct JwtSettings = "auth.jwt" {
        /// What the claim `iss` must be. Empty: it is not looked at.
        "issuer" => issuer: Option<String> = optional_text();
        /// What the claim `aud` must name. Empty: it is not looked at, so a token that the issuer made for another service
        /// is accepted here too.
        "audience" => audience: Option<String> = optional_text();
        /// The secret of the issuer, for HS256: at least 32 bytes.
        "hs256_secret" => hs256: Option<SecretString> = secret();
        /// Path of a file with the keys of the issuer, a JWK Set. It is read again when it changes.
        "jwks_file" => jwks_file: Option<PathBuf> = optional_path();
        /// URL of the keys of the issuer, a JWK Set with public keys for RS256 or `EdDSA`. `https`, or `http` on this machine.
        "jwks_url" => jwks_url: Option<String> = text_with(JWKS_URL, "", |key, url| match url::Url::parse(&url) {
            _ if url.is_empty() => Ok(None),
            Ok(parsed) if parsed.scheme() == "https" || parsed.scheme() == "http" && is_this_machine(&parsed) => {
                Ok(Some(url))
            }
            _ => Err(invalid_value(key, JWKS_URL, format_args!("{url:?}"))),
        });
        /// How often the keys of `jwks_url` are read again. While it is away, those that are known stay.
        "refresh_ms" => refresh_interval: Duration = millis(1000..=86_400_000, 300_000);
        /// A token with an unknown key makes the keys be read at once, but not again within this time.
        "unknown_key_pause_ms" => unknown_key_pause: Duration = millis(100..=3_600_000, 10_000);
        /// How far the clocks of the issuer and of this machine may be apart.
        "leeway_ms" => leeway: Duration = millis(0..=300_000, 5000);
    }
}

impl JwtSettings {
    /// Whether tokens of an issuer are accepted.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.hs256.is_some() || self.jwks_file.is_some() || self.jwks_url.is_some()
    }
}

section! {
    /// Short-lived tokens that the gateway makes for browsers (`POST /v1/tokens`).
    pub struct TokenSettings = "auth.tokens" {
        /// The secret that signs them: at least 32 bytes, the same on every gateway. Empty: the gateway makes no tokens.
        "secret" => signing: Option<SecretString> = secret();
        /// The secret before it. Tokens signed with it are accepted until they expire.
        "previous_secret" => previous: Option<SecretString> = secret();
        /// Lifetime of a token whose maker asks for none.
        "default_lifetime_ms" => default_lifetime: Duration = millis(1000..=86_400_000, 600_000);
        /// Longest lifetime of a token.
        "max_lifetime_ms" => max_lifetime: Duration = millis(1000..=86_400_000, 3_600_000);
    }
}

section! {
    /// What one key or token may use, unless the key has limits of its own. The rates are shared by all gateways.
    pub struct KeyLimitSettings = "auth.limits" {
        /// Requests in a second. More are answered with 429.
        "requests_per_second" => requests_per_second: Option<u32> = zero_or(number(1..=1_000_000, 1));
        /// Bytes of request bodies in a second. More are answered with 429.
        "body_bytes_per_second" => body_bytes_per_second: Option<u64> = zero_or(bytes(1024..=1 << 40, 1024));
        /// Event streams and `WebSocket` connections that may be open at a time, on each gateway. More are answered with 429.
        "streams" => streams: Option<u32> = zero_or(number(1..=1_000_000, 1));
    }
}

const JWKS_URL: &str = "empty, an https URL, or an http URL of this machine";

fn is_this_machine(url: &url::Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

fn optional_text() -> super::kinds::Kind<Option<String>> {
    text_with("text, or empty", "", |_, text| Ok(Some(text).filter(|text| !text.is_empty())))
}
