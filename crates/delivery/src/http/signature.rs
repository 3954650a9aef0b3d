//! Signatures of Standard Webhooks over `<id>.<timestamp>.<body>`: `v1,` and HMAC-SHA256 with a shared secret, and `v1a,` and
//! Ed25519 with a private key, whose public key is all that a receiver needs.

use std::{fmt, str::FromStr, sync::Arc};

use base64::{Engine, engine::general_purpose::STANDARD};
use hmac::{Hmac, Mac};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use secrecy::{ExposeSecret, SecretSlice, SecretString};
use serde::Deserialize;
use sha2::Sha256;

/// Maximum difference between the clocks of sender and receiver, in seconds. Older requests may be replays.
pub const TOLERANCE_SECONDS: u64 = 300;

const PREFIX: &str = "whsec_";
const PRIVATE_PREFIX: &str = "whsk_";
const PUBLIC_PREFIX: &str = "whpk_";
const VERSION: &str = "v1,";
const ASYMMETRIC_VERSION: &str = "v1a,";
/// Bytes of a private key from which the pair is derived. The public key, of as many, may follow it.
const SEED_BYTES: usize = 32;

/// What signs: a secret shared by sender and receiver, `whsec_` and 24 to 64 bytes in base64, or a private key of Ed25519,
/// `whsk_` and 32 bytes in base64, or 64 with the public key after it. It is never shown.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "String")]
pub struct Secret {
    bytes: SecretSlice<u8>,
    pair: Option<SigningPair>,
}

/// Shows nothing of its private key.
#[derive(Clone)]
struct SigningPair(Arc<Ed25519KeyPair>);

impl fmt::Debug for SigningPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ed25519")
    }
}

/// An invalid secret. The error does not show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a signing secret must be {PREFIX} and 24 to 64 bytes in base64, or {PRIVATE_PREFIX} and a private key of Ed25519: 32 bytes in \
     base64, or 64 with its public key"
)]
pub struct SecretError;

impl FromStr for Secret {
    type Err = SecretError;

    /// The prefix of a shared secret is optional, as in the libraries of Standard Webhooks.
    fn from_str(text: &str) -> Result<Self, SecretError> {
        if let Some(key) = text.strip_prefix(PRIVATE_PREFIX) {
            return Self::from_private_key(key);
        }
        let bytes = decode(text.strip_prefix(PREFIX).unwrap_or(text))?;
        if (24..=64).contains(&bytes.expose_secret().len()) { Ok(Self { bytes, pair: None }) } else { Err(SecretError) }
    }
}

fn decode(text: &str) -> Result<SecretSlice<u8>, SecretError> {
    STANDARD.decode(text).map(SecretSlice::from).map_err(|_| SecretError)
}

impl TryFrom<String> for Secret {
    type Error = SecretError;

    fn try_from(text: String) -> Result<Self, SecretError> {
        SecretString::from(text).expose_secret().parse()
    }
}

impl Secret {
    fn from_private_key(text: &str) -> Result<Self, SecretError> {
        let bytes = decode(text)?;
        let pair = match bytes.expose_secret() {
            seed if seed.len() == SEED_BYTES => Ed25519KeyPair::from_seed_unchecked(seed),
            both if both.len() == 2 * SEED_BYTES => {
                let (seed, public) = both.split_at(SEED_BYTES);
                Ed25519KeyPair::from_seed_and_public_key(seed, public)
            }
            _ => return Err(SecretError),
        };
        let pair = pair.map_err(|_| SecretError)?;
        Ok(Self { bytes, pair: Some(SigningPair(Arc::new(pair))) })
    }

    /// The public key of a private one: `whpk_` and base64. A shared secret has none.
    #[must_use]
    pub fn public_key(&self) -> Option<String> {
        let pair = self.pair.as_ref()?;
        Some(format!("{PUBLIC_PREFIX}{}", STANDARD.encode(pair.0.public_key())))
    }

    /// Base64 without the prefix: to find it in texts that must not contain it.
    pub(super) fn to_base64(&self) -> SecretString {
        STANDARD.encode(self.bytes.expose_secret()).into()
    }

    fn mac(&self, id: &str, timestamp: &str, body: &[u8]) -> Hmac<Sha256> {
        // HMAC accepts keys of any length: the library's error cannot occur, and an empty MAC would match nothing
        let mut mac =
            Hmac::<Sha256>::new_from_slice(self.bytes.expose_secret()).unwrap_or_else(|_| Hmac::new(&[0; 64].into()));
        for part in [id.as_bytes(), b".", timestamp.as_bytes(), b".", body] {
            mac.update(part);
        }
        mac
    }
}

/// The value of `webhook-signature`: a signature with each secret. A receiver needs one that matches, so the old and
/// the new secret work during a rotation.
#[must_use]
pub fn sign(secrets: &[Secret], id: &str, timestamp_seconds: u64, body: &[u8]) -> String {
    let timestamp = timestamp_seconds.to_string();
    let mut all = String::with_capacity(96 * secrets.len());
    for secret in secrets {
        if !all.is_empty() {
            all.push(' ');
        }
        if let Some(pair) = &secret.pair {
            all.push_str(ASYMMETRIC_VERSION);
            STANDARD.encode_string(pair.0.sign(&signed_text(id, &timestamp, body)), &mut all);
        } else {
            all.push_str(VERSION);
            STANDARD.encode_string(secret.mac(id, &timestamp, body).finalize().into_bytes(), &mut all);
        }
    }
    all
}

/// What is signed, in one piece: Ed25519 reads it twice.
fn signed_text(id: &str, timestamp: &str, body: &[u8]) -> Vec<u8> {
    [id.as_bytes(), b".", timestamp.as_bytes(), b".", body].concat()
}

/// The public key of a sender: `whpk_` and 32 bytes in base64.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey(Vec<u8>);

/// An invalid public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a public key must be {PUBLIC_PREFIX} and 32 bytes in base64")]
pub struct PublicKeyError;

impl FromStr for PublicKey {
    type Err = PublicKeyError;

    fn from_str(text: &str) -> Result<Self, PublicKeyError> {
        let bytes = text.strip_prefix(PUBLIC_PREFIX).and_then(|key| STANDARD.decode(key).ok());
        bytes.filter(|bytes| bytes.len() == SEED_BYTES).map(Self).ok_or(PublicKeyError)
    }
}

/// The three headers as received.
#[derive(Debug, Clone, Copy)]
pub struct SignatureHeaders<'a> {
    /// `webhook-id`
    pub id: &'a str,
    /// `webhook-timestamp`
    pub timestamp: &'a str,
    /// `webhook-signature`
    pub signature: &'a str,
}

impl SignatureHeaders<'_> {
    fn of_version(&self, version: &'static str) -> impl Iterator<Item = Vec<u8>> {
        self.signature.split(' ').filter_map(move |one| STANDARD.decode(one.strip_prefix(version)?).ok())
    }
}

/// Why a request is not trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// The timestamp is not a number.
    #[error("webhook-timestamp must be seconds since 1970")]
    InvalidTimestamp,
    /// The timestamp differs too much from now.
    #[error("webhook-timestamp must be within {TOLERANCE_SECONDS} s of now")]
    TimestampOutsideTolerance,
    /// No signature matches.
    #[error("webhook-signature must have a signature of this id, timestamp and body with a known secret or key")]
    NoMatchingSignature,
}

/// Verifies that a request was signed with one of the secrets, within [`TOLERANCE_SECONDS`] of now. For receivers in
/// Rust.
///
/// # Errors
/// Why it is not trusted.
pub fn verify(
    secrets: &[Secret],
    signed: SignatureHeaders<'_>,
    body: &[u8],
    now_seconds: u64,
) -> Result<(), SignatureError> {
    check_time(signed.timestamp, now_seconds)?;
    for signature in signed.of_version(VERSION) {
        for secret in secrets.iter().filter(|secret| secret.pair.is_none()) {
            // Compares in constant time
            if secret.mac(signed.id, signed.timestamp, body).verify_slice(&signature).is_ok() {
                return Ok(());
            }
        }
    }
    Err(SignatureError::NoMatchingSignature)
}

/// Verifies that a request was signed with the private key of one of these public keys, within [`TOLERANCE_SECONDS`] of now. For
/// receivers in Rust.
///
/// # Errors
/// Why it is not trusted.
pub fn verify_with_public_keys(
    keys: &[PublicKey],
    signed: SignatureHeaders<'_>,
    body: &[u8],
    now_seconds: u64,
) -> Result<(), SignatureError> {
    check_time(signed.timestamp, now_seconds)?;
    let text = signed_text(signed.id, signed.timestamp, body);
    let is_known = signed.of_version(ASYMMETRIC_VERSION).any(|signature| {
        keys.iter().any(|key| UnparsedPublicKey::new(&ED25519, &key.0).verify(&text, &signature).is_ok())
    });
    if is_known { Ok(()) } else { Err(SignatureError::NoMatchingSignature) }
}

fn check_time(timestamp: &str, now_seconds: u64) -> Result<(), SignatureError> {
    let timestamp: u64 = timestamp.parse().map_err(|_| SignatureError::InvalidTimestamp)?;
    if timestamp.abs_diff(now_seconds) > TOLERANCE_SECONDS {
        return Err(SignatureError::TimestampOutsideTolerance);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The test vectors of the Standard Webhooks libraries: secret, id, timestamp, body, signature.
    const TEST_VECTORS: [(&str, &str, u64, &str, &str); 2] = [
        (
            "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            1_614_265_330,
            r#"{"test": 2432232314}"#,
            "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
        ),
        (
            "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD",
            "msg_27UH4WbU6Z5A5EzD8u03UvzRbpk",
            1_649_367_553,
            r#"{"email":"test@example.com","username":"test_user"}"#,
            "v1,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw=",
        ),
    ];

    fn secret(text: &str) -> Secret {
        text.parse().expect("a secret")
    }

    #[test]
    fn the_published_vectors_are_made_and_accepted() {
        for (key, id, timestamp, body, signature) in TEST_VECTORS {
            assert_eq!(sign(&[secret(key)], id, timestamp, body.as_bytes()), signature);
            let signed = SignatureHeaders { id, timestamp: &timestamp.to_string(), signature };
            assert_eq!(verify(&[secret(key)], signed, body.as_bytes(), timestamp), Ok(()));
            let bare = key.strip_prefix("whsec_").expect("a prefix");
            assert_eq!(verify(&[secret(bare)], signed, body.as_bytes(), timestamp), Ok(()));
        }
    }

    #[test]
    fn a_changed_body_id_or_timestamp_a_wrong_key_and_a_replay_are_rejected() {
        let (key, id, timestamp, body, signature) = TEST_VECTORS[0];
        let (keys, other) = ([secret(key)], [secret(TEST_VECTORS[1].0)]);
        let at = timestamp.to_string();
        let next = (timestamp + 1).to_string();
        let good = SignatureHeaders { id, timestamp: &at, signature };
        let body = body.as_bytes();
        assert_eq!(
            verify(&keys, good, br#"{"test": 2432232315}"#, timestamp),
            Err(SignatureError::NoMatchingSignature)
        );
        assert_eq!(
            verify(&keys, SignatureHeaders { id: "msg_x", ..good }, body, timestamp),
            Err(SignatureError::NoMatchingSignature)
        );
        assert_eq!(
            verify(&keys, SignatureHeaders { timestamp: &next, ..good }, body, timestamp),
            Err(SignatureError::NoMatchingSignature)
        );
        assert_eq!(verify(&other, good, body, timestamp), Err(SignatureError::NoMatchingSignature));
        assert_eq!(verify(&[], good, body, timestamp), Err(SignatureError::NoMatchingSignature));
        assert_eq!(verify(&keys, good, body, timestamp + TOLERANCE_SECONDS), Ok(()));
        assert_eq!(
            verify(&keys, good, body, timestamp + TOLERANCE_SECONDS + 1),
            Err(SignatureError::TimestampOutsideTolerance)
        );
        assert_eq!(
            verify(&keys, good, body, timestamp - TOLERANCE_SECONDS - 1),
            Err(SignatureError::TimestampOutsideTolerance)
        );
        for text in ["", "-1", "1e9", "99999999999999999999"] {
            assert_eq!(
                verify(&keys, SignatureHeaders { timestamp: text, ..good }, body, timestamp),
                Err(SignatureError::InvalidTimestamp)
            );
        }
        for text in ["", "v1,", "v1", &signature[..9], &signature[3..], &signature.replacen("v1", "v2", 1)] {
            let result = verify(&keys, SignatureHeaders { signature: text, ..good }, body, timestamp);
            assert_eq!(result, Err(SignatureError::NoMatchingSignature), "{text:?}");
        }
    }

    /// The second test of RFC 8032: private key, public key.
    const KEYS: (&str, &str) =
        ("whsk_TM0Imyj/ltqdtsNG7BFOD1uKMZ81q6Yk2oz27U+4pvs=", "whpk_PUAXw+hDiVqStwqnTRt+vJyYLM8uxJaMwM1V8Sr0Zgw=");

    #[test]
    fn a_private_key_signs_what_its_public_key_verifies_and_no_shared_secret() {
        let (private, public) = (secret(KEYS.0), KEYS.1.parse::<PublicKey>().expect("a key"));
        assert_eq!(private.public_key().as_deref(), Some(KEYS.1));
        assert_eq!(secret(TEST_VECTORS[0].0).public_key(), None);
        let signature = sign(&[secret(TEST_VECTORS[0].0), private.clone()], "a", 5, b"{}");
        let signed = SignatureHeaders { id: "a", timestamp: "5", signature: &signature };
        assert!(signature.starts_with("v1,") && signature.contains(" v1a,"), "{signature}");
        let renamed = signature.replace("v1a,", "v1,");
        let verify_public = |signed: SignatureHeaders<'_>, body: &[u8], now| {
            verify_with_public_keys(std::slice::from_ref(&public), signed, body, now)
        };
        assert_eq!(verify_public(signed, b"{}", 5), Ok(()));
        assert_eq!(verify(&[secret(TEST_VECTORS[0].0)], signed, b"{}", 5), Ok(()));
        for wrong in [
            verify_public(signed, b"[]", 5),
            verify_public(SignatureHeaders { id: "b", ..signed }, b"{}", 5),
            verify_public(SignatureHeaders { timestamp: "6", ..signed }, b"{}", 5),
            verify_public(SignatureHeaders { signature: &renamed, ..signed }, b"{}", 5),
            verify(&[private], SignatureHeaders { signature: &signature[48..], ..signed }, b"{}", 5),
            verify_with_public_keys(&[], signed, b"{}", 5),
        ] {
            assert_eq!(wrong, Err(SignatureError::NoMatchingSignature));
        }
        assert_eq!(verify_public(signed, b"{}", 306), Err(SignatureError::TimestampOutsideTolerance));
    }

    #[test]
    fn a_private_key_may_have_its_public_key_after_it_and_no_other() {
        let bytes = |text: &str| STANDARD.decode(text.split_once('_').expect("a prefix").1).expect("base64");
        let both = |public: &[u8]| format!("whsk_{}", STANDARD.encode([&bytes(KEYS.0), public].concat()));
        let pair: Secret = both(&bytes(KEYS.1)).parse().expect("a key");
        assert_eq!(pair.public_key().as_deref(), Some(KEYS.1));
        assert!(!format!("{pair:?}").contains("TM0Imyj"), "{pair:?}");
        for wrong in [both(&[7; 32]), both(&[]) + "A", "whsk_".to_owned(), KEYS.1.to_owned(), both(&[7; 31])] {
            assert!(wrong.parse::<Secret>().is_err(), "{wrong}");
        }
        assert!("whpk_AAAA".parse::<PublicKey>().is_err() && KEYS.0.parse::<PublicKey>().is_err());
    }

    #[test]
    fn while_secrets_are_exchanged_a_receiver_may_know_either() {
        let (old, new) = (secret(TEST_VECTORS[0].0), secret(TEST_VECTORS[1].0));
        let signature = sign(&[new.clone(), old.clone()], "a", 5, b"\xff\x00");
        assert_eq!(signature.split(' ').count(), 2);
        let signed = SignatureHeaders { id: "a", timestamp: "5", signature: &signature };
        for known in [[old], [new]] {
            assert_eq!(verify(&known, signed, b"\xff\x00", 5), Ok(()));
        }
    }

    #[test]
    fn secrets_have_24_to_64_bytes_and_are_shown_by_nothing() {
        for (length, is_allowed) in [(0, false), (23, false), (24, true), (64, true), (65, false)] {
            let text = format!("whsec_{}", STANDARD.encode(vec![b'k'; length]));
            assert_eq!(text.parse::<Secret>().is_ok(), is_allowed, "{length}");
        }
        let bad = "whsec_this is not base64!!".parse::<Secret>().expect_err("not base64").to_string();
        assert!(!bad.contains("this"), "{bad}");
        let json = serde_json::from_str::<Secret>(r#""whsec_geheim""#).expect_err("too short").to_string();
        assert!(!json.contains("geheim"), "{json}");
        let shown = format!("{:?}", secret(TEST_VECTORS[0].0));
        assert!(shown.contains("REDACTED") && !shown.contains("MfKQ") && !shown.contains("49, 242"), "{shown}");
    }
}
