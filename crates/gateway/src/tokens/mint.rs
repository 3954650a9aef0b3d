//! Makes short-lived tokens: signed with the secret of the gateways, never with more rights than their maker has, never
//! with a longer life than its own.

use std::time::Duration;

use common::time::Millis;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use model::access::{Access, Scope};
use secrecy::{ExposeSecret, SecretString};
use serde_json::json;

use super::TOKEN_KIND;

/// A token that was made.
pub(crate) struct MintedToken {
    pub(crate) token: String,
    pub(crate) expires_at: Millis,
}

/// Makes tokens.
pub(super) struct TokenMint {
    key: EncodingKey,
}

impl TokenMint {
    pub(super) fn new(secret: &SecretString) -> Result<Self, String> {
        let key = EncodingKey::from_secret(secret.expose_secret().as_bytes());
        Ok(Self { key: key.map_err(|_| "the secret is empty".to_owned())? })
    }

    /// A token with those rights, which its maker must cover. It ends with its maker, if that ends earlier.
    pub(super) fn make(
        &self,
        granted: &Access,
        maker: &Access,
        now: Millis,
        lifetime: Duration,
    ) -> Result<MintedToken, String> {
        let lifetime = Millis::try_from(lifetime.as_millis()).unwrap_or(Millis::MAX);
        let ends = now.saturating_add(lifetime).min(maker.expires_at.unwrap_or(Millis::MAX));
        let mut claims = json!({
            "sub": granted.name,
            "by": maker.id,
            "jti": uuid::Uuid::new_v4().to_string(),
            "iat": seconds(now),
            "exp": seconds(ends),
            "scopes": granted.scopes.iter().map(Scope::name).collect::<Vec<_>>(),
        });
        for (name, patterns) in [("queues", granted.queues.to_texts()), ("channels", granted.channels.to_texts())] {
            if let Some(patterns) = patterns {
                claims[name] = patterns.into();
            }
        }
        if let Some(namespace) = &granted.namespace {
            claims["namespace"] = namespace.as_str().into();
        }
        let mut header = Header::new(Algorithm::HS256);
        header.typ = Some(TOKEN_KIND.to_owned());
        let token = encode(&header, &claims, &self.key).map_err(|error| error.to_string())?;
        Ok(MintedToken { token, expires_at: ends })
    }
}

/// The time as tokens have it: seconds, with a fraction.
fn seconds(at: Millis) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "exact for the times of this millennium")]
    let millis = at as f64;
    millis / 1000.0
}
