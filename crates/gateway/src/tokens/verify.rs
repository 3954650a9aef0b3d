//! Verifies tokens: their signature with a key of the issuer, or with the secret of this gateway, then their claims.

use std::sync::Arc;

use common::time::Millis;
use jsonwebtoken::{Algorithm, Header, Validation, decode, decode_header, errors::ErrorKind};

use super::{
    TokenRefusal,
    claims::{ClaimRules, Claims},
    key_set::{IssuerKeySet, VerifyingKey},
};

/// The longest token. Those of the largest issuers have two or three kilobytes.
pub(super) const MAX_TOKEN_BYTES: usize = 8192;
/// The longest name of a key.
const MAX_KEY_ID_BYTES: usize = 256;

/// A token that is good.
#[derive(Debug)]
pub(super) struct VerifiedClaims {
    pub(super) claims: Claims,
    pub(super) expires_at: Millis,
    pub(super) verified_by: VerifyingKey,
}

/// Whether this text can be a token: three parts of the alphabet of tokens.
pub(super) fn is_shaped_like_token(text: &str) -> bool {
    let parts: Vec<&str> = text.splitn(4, '.').collect();
    let is_part =
        |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    parts.len() == 3 && parts.iter().all(|part| is_part(part))
}

/// The head of a token, which nothing has verified: it only says which keys to try.
pub(super) struct TokenHead {
    pub(super) algorithm: Algorithm,
    pub(super) key_id: Option<String>,
    pub(super) kind: Option<String>,
}

impl TokenHead {
    pub(super) fn read(token: &str) -> Result<Self, TokenRefusal> {
        if token.len() > MAX_TOKEN_BYTES || !is_shaped_like_token(token) {
            return Err(TokenRefusal::Malformed);
        }
        let Header { alg, kid, typ, .. } = decode_header(token).map_err(|error| match error.kind() {
            // `none`, and whatever else the library does not have
            ErrorKind::Json(_) => TokenRefusal::Algorithm,
            _ => TokenRefusal::Malformed,
        })?;
        if !matches!(alg, Algorithm::HS256 | Algorithm::RS256 | Algorithm::EdDSA) {
            return Err(TokenRefusal::Algorithm);
        }
        if kid.as_ref().is_some_and(|id| id.len() > MAX_KEY_ID_BYTES) {
            return Err(TokenRefusal::Malformed);
        }
        Ok(Self { algorithm: alg, key_id: kid, kind: typ })
    }
}

/// Verifies a token with one of the keys.
///
/// # Errors
/// No key has that id and algorithm, none of them signed the token, or its claims are not good.
pub(super) fn verify(
    token: &str,
    head: &TokenHead,
    keys: &Arc<IssuerKeySet>,
    rules: &ClaimRules,
    now: Millis,
) -> Result<VerifiedClaims, TokenRefusal> {
    let mut refused = TokenRefusal::UnknownKey;
    for key in keys.candidates(head.algorithm, head.key_id.as_deref()) {
        match decode::<Claims>(token, &key.key, &signature_only(key.algorithm)) {
            Ok(decoded) => {
                let expires_at = decoded.claims.check(rules, now)?;
                return Ok(VerifiedClaims { claims: decoded.claims, expires_at, verified_by: key.clone() });
            }
            Err(error) => {
                refused = match error.kind() {
                    ErrorKind::InvalidSignature => TokenRefusal::Signature,
                    _ => return Err(TokenRefusal::Malformed),
                }
            }
        }
    }
    Err(refused)
}

/// The library verifies the signature. The claims are checked here, with a clock that tests can set.
fn signature_only(algorithm: Algorithm) -> Validation {
    let mut validation = Validation::new(algorithm);
    validation.required_spec_claims.clear();
    validation.validate_exp = false;
    validation.validate_nbf = false;
    validation.validate_aud = false;
    validation
}
