//! The keys that may have signed a token, and the choice among them.
//!
//! Each key belongs to one algorithm. A token names its algorithm, and only keys of that one are tried: what the token says
//! never changes how a key is used.

use jsonwebtoken::{
    Algorithm, DecodingKey,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse},
};
use serde_json::Value;

/// The most keys of one set. Issuers have two or three.
const MAX_KEYS: usize = 64;
/// The shortest shared secret: as long as the hash, as RFC 7518 asks.
const MIN_SECRET_BYTES: usize = 32;

/// Where a set of keys comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KeyOrigin {
    /// A file of this machine.
    File,
    /// A URL, which others may read too: it holds public keys only.
    Url,
}

/// A key with what it may verify.
#[derive(Debug, Clone)]
pub(super) struct VerifyingKey {
    pub(super) id: Option<String>,
    pub(super) algorithm: Algorithm,
    pub(super) key: DecodingKey,
}

/// The keys of an issuer.
#[derive(Debug, Clone, Default)]
pub(super) struct IssuerKeySet(Vec<VerifyingKey>);

impl IssuerKeySet {
    /// Shared secrets.
    pub(super) fn of_secrets<'a>(secrets: impl IntoIterator<Item = &'a [u8]>) -> Result<Self, String> {
        secrets.into_iter().map(|secret| hmac_key(None, secret)).collect::<Result<_, _>>().map(Self)
    }

    /// Reads a JWK Set (RFC 7517). Keys of other kinds and for other uses are left out: issuers publish those too.
    pub(super) fn parse(json: &[u8], origin: KeyOrigin) -> Result<Self, String> {
        let document: Value = serde_json::from_slice(json).map_err(|_| "it is not valid JSON".to_owned())?;
        let listed = document["keys"].as_array().ok_or("it is no JWK Set: it has no array \"keys\"")?;
        if listed.len() > MAX_KEYS {
            return Err(format!("it has {} keys, more than {MAX_KEYS}", listed.len()));
        }
        let mut keys = Vec::new();
        for (position, listed) in listed.iter().enumerate() {
            let Ok(jwk) = serde_json::from_value::<Jwk>(listed.clone()) else { continue };
            // The message must not repeat the key
            let read = verifying_key(&jwk, origin).map_err(|why| format!("key {position}: {why}"))?;
            keys.extend(read);
        }
        if keys.is_empty() {
            return Err("it has no key for HS256, RS256 or EdDSA".to_owned());
        }
        Ok(Self(keys))
    }

    /// The keys that may have signed a token of that algorithm and key id.
    pub(super) fn candidates<'a>(
        &'a self,
        algorithm: Algorithm,
        id: Option<&'a str>,
    ) -> impl Iterator<Item = &'a VerifyingKey> {
        let is_named = move |key: &VerifyingKey| match (&key.id, id) {
            (Some(known), Some(given)) => known == given,
            _ => true,
        };
        self.0.iter().filter(move |key| key.algorithm == algorithm && is_named(key))
    }

    /// Whether a key that verified a token is still here.
    pub(super) fn contains(&self, verified_by: &VerifyingKey) -> bool {
        let is_same = |key: &VerifyingKey| {
            key.id == verified_by.id
                && key.algorithm == verified_by.algorithm
                && is_same_key(&key.key, &verified_by.key)
        };
        self.0.iter().any(is_same)
    }
}

fn is_same_key(one: &DecodingKey, other: &DecodingKey) -> bool {
    use jsonwebtoken::DecodingKeyKind::{RsaModulusExponent, SecretOrDer};
    match (one.kind(), other.kind()) {
        (SecretOrDer(one), SecretOrDer(other)) => one == other,
        (RsaModulusExponent { n, e }, RsaModulusExponent { n: other_n, e: other_e }) => n == other_n && e == other_e,
        _ => false,
    }
}

fn hmac_key(id: Option<String>, secret: &[u8]) -> Result<VerifyingKey, String> {
    if secret.len() < MIN_SECRET_BYTES {
        return Err(format!("a secret for HS256 must have at least {MIN_SECRET_BYTES} bytes"));
    }
    let key = DecodingKey::from_secret(secret).map_err(|_| "the secret is empty".to_owned())?;
    Ok(VerifyingKey { id, algorithm: Algorithm::HS256, key })
}

/// The key, or none if it is not for signatures that are verified here.
fn verifying_key(jwk: &Jwk, origin: KeyOrigin) -> Result<Option<VerifyingKey>, String> {
    let (algorithm, named) = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => (Algorithm::RS256, KeyAlgorithm::RS256),
        AlgorithmParameters::OctetKeyPair(pair) if pair.curve == EllipticCurve::Ed25519 => {
            (Algorithm::EdDSA, KeyAlgorithm::EdDSA)
        }
        AlgorithmParameters::OctetKey(_) => (Algorithm::HS256, KeyAlgorithm::HS256),
        _ => return Ok(None),
    };
    let is_for_signatures = !matches!(&jwk.common.public_key_use, Some(using) if *using != PublicKeyUse::Signature);
    if !is_for_signatures || jwk.common.key_algorithm.is_some_and(|given| given != named) {
        return Ok(None);
    }
    if algorithm == Algorithm::HS256 && origin == KeyOrigin::Url {
        return Err("a shared secret must not come from a URL".to_owned());
    }
    let key = DecodingKey::from_jwk(jwk).map_err(|_| "it cannot be decoded".to_owned())?;
    let id = jwk.common.key_id.clone();
    match algorithm {
        Algorithm::HS256 => {
            let secret = key.try_get_as_bytes().map_err(|_| "it cannot be decoded".to_owned())?;
            hmac_key(id, secret).map(Some)
        }
        _ => Ok(Some(VerifyingKey { id, algorithm, key })),
    }
}
