//! Tokens: JWTs of an issuer that the settings name, and short-lived tokens that this gateway makes itself for browsers.
//!
//! | module | what it does |
//! |---|---|
//! | `verify`, `claims` | signature, times, `iss` and `aud` of a token |
//! | `key_set`, `issuer_keys` | the keys of the issuer: from settings, a file or a URL, kept while the URL is away |
//! | `grant` | the rights that a token gives |
//! | `mint` | makes a token: never more rights than its maker has, never a longer life |
//! | `ring_provider` | the cryptography |
//!
//! A token is never logged, and no error repeats a part of it.

mod claims;
mod grant;
mod issuer_keys;
mod key_set;
mod mint;
mod ring_provider;
#[cfg(test)]
mod tests;
mod verify;

use std::{path::PathBuf, sync::Arc, time::Duration};

use common::{settings::TokenTables, time::Millis};
use delivery::http::{Network, fetch::Fetcher};
use model::access::Access;
use secrecy::{ExposeSecret, SecretString};
use tokio_util::sync::CancellationToken;

use self::{
    claims::ClaimRules,
    grant::ISSUED_TOKEN_PREFIX,
    issuer_keys::{IssuerKeys, KeySource},
    key_set::{IssuerKeySet, VerifyingKey},
    mint::TokenMint,
    verify::{TokenHead, VerifiedClaims},
};
pub(crate) use self::{grant::OWN_TOKEN_PREFIX, mint::MintedToken};

/// The `typ` of tokens that a gateway makes. It tells them from those of an issuer, whatever secrets both use.
const TOKEN_KIND: &str = "glk+jwt";
/// The longest wait for a connection to the issuer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Why a token is refused. The texts go to the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TokenRefusal {
    #[error("it is no token of three parts with at most 8192 bytes, or its claims have the wrong shape")]
    Malformed,
    #[error("its algorithm is not one of HS256, RS256 and EdDSA")]
    Algorithm,
    #[error("it names a key that the issuer does not have")]
    UnknownKey,
    #[error("its signature is wrong")]
    Signature,
    #[error("it has expired")]
    Expired,
    #[error("it is not valid yet")]
    NotYetValid,
    #[error("{0}")]
    Claim(&'static str),
    #[error("its claim {0} is not valid: {1}")]
    Grant(&'static str, String),
    #[error("the key that it was made with is gone")]
    MakerGone,
    #[error("the keys of its issuer could not be read yet")]
    IssuerAway,
    #[error("this gateway takes no tokens")]
    NotAccepted,
}

/// What a good token gives.
pub(crate) struct TokenAccess {
    pub(crate) access: Access,
    /// The id of the key, or the subject, that made the token, if a gateway signed it.
    pub(crate) made_by: Option<String>,
    /// Waits until the key that signed the token is not the issuer's any more.
    pub(crate) signer: TokenSigner,
}

/// Who signed a token.
#[derive(Clone)]
pub(crate) struct TokenSigner {
    key: VerifyingKey,
    keys: IssuerKeys,
}

impl TokenSigner {
    /// Returns when the key that signed the token is withdrawn.
    pub(crate) async fn withdrawn(&self) {
        loop {
            let changed = self.keys.changes();
            if self.keys.current().is_some_and(|keys| !keys.contains(&self.key)) {
                return;
            }
            changed.await;
        }
    }
}

/// Verifies tokens, and makes them.
#[derive(Clone)]
pub(crate) struct Tokens(Arc<TokenParts>);

struct TokenParts {
    issuer: Option<(IssuerKeys, ClaimRules)>,
    own: Option<(IssuerKeys, ClaimRules)>,
    mint: Option<TokenMint>,
    default_lifetime: Duration,
    max_lifetime: Duration,
}

impl Tokens {
    /// What the settings say. The keys of an issuer are read until `stop` is cancelled; a file of them is looked at after
    /// each `look`.
    ///
    /// # Errors
    /// A file of keys that cannot be used.
    pub(crate) fn start(settings: &TokenTables, look: Duration, stop: CancellationToken) -> anyhow::Result<Self> {
        ring_provider::install();
        let leeway = Millis::try_from(settings.jwt.leeway.as_millis()).unwrap_or_default();
        let rules = ClaimRules { issuer: settings.jwt.issuer.clone(), aud: settings.jwt.audience.clone(), leeway };
        let secrets = [&settings.tokens.signing, &settings.tokens.previous];
        let own = IssuerKeySet::of_secrets(secrets.into_iter().flatten().map(expose));
        let own = own.map_err(|why| anyhow::anyhow!("auth.tokens: {why}"))?;
        let own_rules = ClaimRules { issuer: None, aud: None, leeway };
        let mint = settings.tokens.signing.as_ref().map(TokenMint::new).transpose();
        Ok(Self(Arc::new(TokenParts {
            issuer: issuer_keys(settings, look, stop)?.map(|keys| (keys, rules)),
            own: settings.tokens.signing.is_some().then(|| (IssuerKeys::fixed(own), own_rules)),
            mint: mint.map_err(|why| anyhow::anyhow!("auth.tokens.secret: {why}"))?,
            default_lifetime: settings.tokens.default_lifetime,
            max_lifetime: settings.tokens.max_lifetime,
        })))
    }

    /// Whether a credential is meant as a token: keys have no dots.
    pub(crate) fn is_token(credential: &str) -> bool {
        credential.contains('.')
    }

    /// The rights that a token gives.
    ///
    /// # Errors
    /// It is not good. [`TokenRefusal::IssuerAway`] if nobody can say.
    pub(crate) async fn verify(&self, token: &str, now: Millis) -> Result<TokenAccess, TokenRefusal> {
        let head = TokenHead::read(token)?;
        let is_own = head.kind.as_deref() == Some(TOKEN_KIND);
        let (keys, rules) =
            if is_own { &self.0.own } else { &self.0.issuer }.as_ref().ok_or(TokenRefusal::NotAccepted)?;
        let verified = verify_with(keys, token, &head, rules, now).await?;
        let VerifiedClaims { claims, expires_at, verified_by } = verified;
        let access = grant::access(&claims, if is_own { OWN_TOKEN_PREFIX } else { ISSUED_TOKEN_PREFIX }, expires_at)?;
        let made_by = claims.by.filter(|_| is_own);
        Ok(TokenAccess { access, made_by, signer: TokenSigner { key: verified_by, keys: keys.clone() } })
    }

    /// Makes a token with rights that its maker covers. Without a lifetime it has the usual one.
    ///
    /// # Errors
    /// The gateway makes no tokens, the lifetime is longer than allowed, or the rights go beyond the maker's.
    pub(crate) fn make(
        &self,
        granted: &Access,
        maker: &Access,
        now: Millis,
        lifetime: Option<Duration>,
    ) -> Result<MintedToken, MintRefusal> {
        let mint = self.0.mint.as_ref().ok_or(MintRefusal::Off)?;
        let lifetime = lifetime.unwrap_or(self.0.default_lifetime.min(self.0.max_lifetime));
        if lifetime > self.0.max_lifetime || lifetime.is_zero() {
            return Err(MintRefusal::Lifetime(self.0.max_lifetime));
        }
        if !maker.covers(granted) {
            return Err(MintRefusal::MoreThanMaker);
        }
        mint.make(granted, maker, now, lifetime).map_err(MintRefusal::Broken)
    }
}

/// Why no token is made.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum MintRefusal {
    /// The settings have no secret.
    Off,
    /// It is longer than this, or nothing.
    Lifetime(Duration),
    /// The maker does not have all those rights.
    MoreThanMaker,
    /// The library failed.
    Broken(String),
}

/// Verifies with the keys that are known, and if none fits with those that the issuer has now.
async fn verify_with(
    keys: &IssuerKeys,
    token: &str,
    head: &TokenHead,
    rules: &ClaimRules,
    now: Millis,
) -> Result<VerifiedClaims, TokenRefusal> {
    if let Some(known) = keys.current() {
        match verify::verify(token, head, &known, rules, now) {
            Err(TokenRefusal::UnknownKey) => {}
            verified => return verified,
        }
    }
    let known = keys.read_again().await.ok_or(TokenRefusal::IssuerAway)?;
    verify::verify(token, head, &known, rules, now)
}

fn expose(secret: &SecretString) -> &[u8] {
    secret.expose_secret().as_bytes()
}

fn issuer_keys(settings: &TokenTables, look: Duration, stop: CancellationToken) -> anyhow::Result<Option<IssuerKeys>> {
    let jwt = &settings.jwt;
    if let Some(secret) = &jwt.hs256 {
        let keys = IssuerKeySet::of_secrets([expose(secret)]);
        let keys = keys.map_err(|why| anyhow::anyhow!("auth.jwt.hs256_secret: {why}"))?;
        return Ok(Some(IssuerKeys::fixed(keys)));
    }
    let (setting, source, interval) = match (&jwt.jwks_file, &jwt.jwks_url) {
        (Some(path), _) => ("auth.jwt.jwks_file", KeySource::File(PathBuf::clone(path)), look),
        (None, Some(url)) => {
            let fetcher = Fetcher::new(&Network::system()?, CONNECT_TIMEOUT);
            ("auth.jwt.jwks_url", KeySource::Url { url: url.clone(), fetcher: Box::new(fetcher) }, jwt.refresh_interval)
        }
        (None, None) => return Ok(None),
    };
    let keys = IssuerKeys::start(source, interval, jwt.unknown_key_pause, stop);
    Ok(Some(keys.map_err(|why| anyhow::anyhow!("{setting}: {why}"))?))
}
