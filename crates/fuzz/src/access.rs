//! Keys, tokens and what they allow.

use model::access::{ApiKeyRecord, KEY_PREFIX, KeyText, NamePatterns, Namespace, PresentedKey};

use crate::NOW;

// The gateway is a program and not a library: its files about claims are compiled here
#[path = "../../gateway/src/tokens/claims.rs"]
#[expect(dead_code, reason = "the gateway reads the members")]
mod claims;
#[path = "../../gateway/src/tokens/grant.rs"]
mod grant;

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
