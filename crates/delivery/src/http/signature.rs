//! Signatures of Standard Webhooks with a shared secret: `v1,` and HMAC-SHA256 over `<id>.<timestamp>.<body>`.
//!
//! Asymmetric signatures (`v1a`) are not supported.

use std::str::FromStr;

use base64::{Engine, engine::general_purpose::STANDARD};
use hmac::{Hmac, Mac};
use secrecy::{ExposeSecret, SecretSlice, SecretString};
use serde::Deserialize;
use sha2::Sha256;

/// Maximum difference between the clocks of sender and receiver, in seconds. Older requests may be replays.
pub const TOLERANCE_SECONDS: u64 = 300;

const PREFIX: &str = "whsec_";
const VERSION: &str = "v1,";

/// A secret shared by sender and receiver: `whsec_` and 24 to 64 bytes in base64. It is never shown.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "String")]
pub struct Secret(SecretSlice<u8>);

/// An invalid secret. The error does not show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a signing secret must be {PREFIX} and 24 to 64 bytes in base64")]
pub struct SecretError;

impl FromStr for Secret {
    type Err = SecretError;

    /// The prefix is optional, as in the libraries of Standard Webhooks.
    fn from_str(text: &str) -> Result<Self, SecretError> {
        let bytes = STANDARD.decode(text.strip_prefix(PREFIX).unwrap_or(text)).map_err(|_| SecretError)?;
        let secret = SecretSlice::from(bytes);
        if (24..=64).contains(&secret.expose_secret().len()) { Ok(Self(secret)) } else { Err(SecretError) }
    }
}

impl TryFrom<String> for Secret {
    type Error = SecretError;

    fn try_from(text: String) -> Result<Self, SecretError> {
        SecretString::from(text).expose_secret().parse()
    }
}

impl Secret {
    /// Base64 without the prefix: to find it in texts that must not contain it.
    pub(super) fn to_base64(&self) -> SecretString {
        STANDARD.encode(self.0.expose_secret()).into()
    }

    fn mac(&self, id: &str, timestamp: &str, body: &[u8]) -> Hmac<Sha256> {
        // HMAC accepts keys of any length: the library's error cannot occur, and an empty MAC would match nothing
        let mut mac =
            Hmac::<Sha256>::new_from_slice(self.0.expose_secret()).unwrap_or_else(|_| Hmac::new(&[0; 64].into()));
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
    let mut all = String::with_capacity(48 * secrets.len());
    for secret in secrets {
        if !all.is_empty() {
            all.push(' ');
        }
        all.push_str(VERSION);
        STANDARD.encode_string(secret.mac(id, &timestamp, body).finalize().into_bytes(), &mut all);
    }
    all
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
    #[error("webhook-signature must have a v1 signature of this id, timestamp and body with a known secret")]
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
    let timestamp: u64 = signed.timestamp.parse().map_err(|_| SignatureError::InvalidTimestamp)?;
    if timestamp.abs_diff(now_seconds) > TOLERANCE_SECONDS {
        return Err(SignatureError::TimestampOutsideTolerance);
    }
    let signatures = signed.signature.split(' ').filter_map(|one| STANDARD.decode(one.strip_prefix(VERSION)?).ok());
    for signature in signatures {
        for secret in secrets {
            // Compares in constant time
            if secret.mac(signed.id, signed.timestamp, body).verify_slice(&signature).is_ok() {
                return Ok(());
            }
        }
    }
    Err(SignatureError::NoMatchingSignature)
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
