//! Keys, tokens and what they allow.

use jsonwebtoken::Algorithm;
use model::access::{ApiKeyRecord, KEY_PREFIX, KeyText, NamePatterns, Namespace, PresentedKey};

use crate::NOW;

// The gateway is a program and not a library: its files about claims are compiled here
#[path = "../../gateway/src/tokens/claims.rs"]
mod claims;
#[path = "../../gateway/src/tokens/grant.rs"]
mod grant;
#[path = "../../gateway/src/tokens/key_set.rs"]
#[expect(dead_code, reason = "the gateway verifies with the keys")]
mod key_set;
#[path = "../../gateway/src/tokens/ring_provider.rs"]
mod ring_provider;

/// Stands in for the gateway's own.
#[derive(Debug, Clone, PartialEq, Eq)]
enum ClaimsRefused {
    #[cfg(test)]
    Malformed,
    Expired,
    NotYetValid,
    Claim(&'static str),
    Grant(&'static str, String),
}

use ClaimsRefused as TokenRefusal;

/// What a client presents as a key, and a line of a file of keys.
pub(crate) fn api_key(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Some(key) = PresentedKey::parse(text) {
        assert!(text.starts_with(KEY_PREFIX) && text.contains(key.id()));
        let _ = key.hash();
    }
    if let Ok(key) = serde_json::from_str::<KeyText>(text)
        && let Ok(record) = key.parse()
    {
        let again: Result<ApiKeyRecord, String> = KeyText::of(&record).parse();
        assert_eq!(again.expect("a key that was written can be read").access, record.access);
    }
    if let Ok(namespace) = text.parse::<Namespace>() {
        assert!(namespace.holds(&format!("{namespace}.x")) && !namespace.holds(&format!("{namespace}x")));
    }
    if let Ok(patterns) = NamePatterns::parse(Some(text.split(','))) {
        let _ = patterns.matches("orders.new");
    }
}

/// A JWK Set of an issuer. What is taken can be asked for keys, and a set with a secret never comes from a URL.
pub(crate) fn issuer_keys(data: &[u8]) {
    ring_provider::install();
    let from_file = key_set::IssuerKeySet::parse(data, key_set::KeyOrigin::File);
    let from_url = key_set::IssuerKeySet::parse(data, key_set::KeyOrigin::Url);
    if let Ok(keys) = &from_file {
        let keys = |algorithm| keys.candidates(algorithm, None);
        assert!(keys(Algorithm::HS256).chain(keys(Algorithm::RS256)).chain(keys(Algorithm::EdDSA)).next().is_some());
    }
    if let Ok(keys) = &from_url {
        assert!(keys.candidates(Algorithm::HS256, None).next().is_none() && from_file.is_ok());
    }
}

/// The claims of a token whose signature is good. What they give ends when they say.
pub(crate) fn token_claims(data: &[u8]) {
    let Ok(written) = serde_json::from_slice::<claims::Claims>(data) else { return };
    let rules = claims::ClaimRules { issuer: None, aud: None, leeway: 30_000 };
    let Ok(expires_at) = written.check(&rules, NOW) else { return };
    assert!(expires_at + 30_000 > NOW);
    if let Ok(access) = grant::access(&written, "jwt:", expires_at) {
        assert_eq!(access.expires_at, Some(expires_at));
    }
}
