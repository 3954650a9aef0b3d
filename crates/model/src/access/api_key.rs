//! API keys: `glk_<id>_<secret>`. The secret has 256 random bits, is shown once, and is kept only as its hash. With
//! that many bits a fast hash is enough: nobody can try them out.

use std::{fmt, str::FromStr, sync::Arc};

use common::name::NameError;
use rand::{Rng, distr::Alphanumeric, rng};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// What every key begins with, for people and for scanners of secrets.
pub const KEY_PREFIX: &str = "glk_";
/// The letters of a new id.
const ID_LENGTH: usize = 16;
/// 43 of 62 letters carry 256 bits.
const SECRET_LENGTH: usize = 43;

/// The public part of a key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(Arc<str>);

impl KeyId {
    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for KeyId {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        if is_id(text) {
            Ok(Self(text.into()))
        } else {
            Err(NameError::new("id", "have 1 to 32 letters and digits", text))
        }
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_id(text: &str) -> bool {
    (1..=32).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric())
}

/// A whole key, for its owner alone.
#[derive(Debug, Clone)]
pub struct ApiKey {
    id: KeyId,
    text: SecretString,
}

impl ApiKey {
    /// A new key.
    #[must_use]
    pub fn generate() -> Self {
        Self::generate_for(KeyId(random_text(ID_LENGTH).into()))
    }

    /// A key with an id that exists and a new secret.
    #[must_use]
    pub fn generate_for(id: KeyId) -> Self {
        let text = format!("{KEY_PREFIX}{id}_{}", random_text(SECRET_LENGTH)).into();
        Self { id, text }
    }

    /// A key from settings.
    #[must_use]
    pub fn parse(text: &SecretString) -> Option<Self> {
        let id = PresentedKey::parse(text.expose_secret())?.id.parse().ok()?;
        Some(Self { id, text: text.clone() })
    }

    /// The public part.
    #[must_use]
    pub fn id(&self) -> &KeyId {
        &self.id
    }

    /// What is kept of it.
    #[must_use]
    pub fn hash(&self) -> KeyHash {
        PresentedKey::parse(self.expose()).map_or(KeyHash([0; 32]), PresentedKey::hash)
    }

    /// The whole key. Show it once, to its owner.
    #[must_use]
    pub fn expose(&self) -> &str {
        self.text.expose_secret()
    }
}

/// `rng` is a cryptographic generator that the operating system seeds.
fn random_text(length: usize) -> String {
    rng().sample_iter(Alphanumeric).take(length).map(char::from).collect()
}

/// A key as a client sends it. It may be wrong.
#[derive(Clone, Copy)]
pub struct PresentedKey<'a> {
    id: &'a str,
    secret: &'a str,
}

impl<'a> PresentedKey<'a> {
    /// The parts of a key, if this looks like one.
    #[must_use]
    pub fn parse(text: &'a str) -> Option<Self> {
        let (id, secret) = text.strip_prefix(KEY_PREFIX)?.split_once('_')?;
        let is_secret = secret.len() == SECRET_LENGTH && secret.bytes().all(|b| b.is_ascii_alphanumeric());
        (is_id(id) && is_secret).then_some(Self { id, secret })
    }

    /// Which key it claims to be.
    #[must_use]
    pub fn id(self) -> &'a str {
        self.id
    }

    /// The hash of its secret.
    #[must_use]
    pub fn hash(self) -> KeyHash {
        KeyHash(Sha256::digest(self.secret).into())
    }
}

/// The hash of a key's secret.
#[derive(Clone)]
pub struct KeyHash([u8; 32]);

impl KeyHash {
    /// Whether two hashes are equal. It takes the same time wherever they differ.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

const HASH_PREFIX: &str = "sha256:";

impl FromStr for KeyHash {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let hex = text.strip_prefix(HASH_PREFIX).filter(|hex| hex.len() == 64 && hex.is_ascii());
        let parse = |hex: &str| {
            let mut bytes = [0; 32];
            for (nth, byte) in bytes.iter_mut().enumerate() {
                *byte = u8::from_str_radix(hex.get(2 * nth..2 * nth + 2)?, 16).ok()?;
            }
            Some(Self(bytes))
        };
        // The text is not shown: it may be a key that somebody put in the wrong place
        hex.and_then(parse).ok_or_else(|| format!("hash must be {HASH_PREFIX} and 64 hexadecimal digits"))
    }
}

impl fmt::Display for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HASH_PREFIX)?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyHash(…)")
    }
}

impl PartialEq for KeyHash {
    fn eq(&self, other: &Self) -> bool {
        self.is_same(other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_back_and_only_its_own_hash_is_the_same() {
        let (key, other) = (ApiKey::generate(), ApiKey::generate());
        let presented = PresentedKey::parse(key.expose()).expect("a key");
        assert_eq!(presented.id(), key.id().as_str());
        assert!(presented.hash().is_same(&key.hash()) && !presented.hash().is_same(&other.hash()));
        let kept: KeyHash = key.hash().to_string().parse().expect("a hash");
        assert!(kept.is_same(&key.hash()));
        let rotated = ApiKey::generate_for(key.id().clone());
        assert!(rotated.id() == key.id() && !rotated.hash().is_same(&key.hash()));
        assert_eq!(key.expose().len(), "glk_".len() + ID_LENGTH + 1 + SECRET_LENGTH);
    }

    #[test]
    fn what_is_not_a_key_is_told_before_anything_is_looked_up() {
        let secret = "a".repeat(SECRET_LENGTH);
        assert!(PresentedKey::parse(&format!("glk_x_{secret}")).is_some());
        for text in [
            String::new(),
            "glk_".to_owned(),
            format!("glk__{secret}"),
            format!("gl_x_{secret}"),
            format!("glk_x_{secret}a"),
            format!("glk_x_{}_", &secret[1..]),
            format!("glk_x y_{secret}"),
            format!("glk_{}_{secret}", "i".repeat(33)),
        ] {
            assert!(PresentedKey::parse(&text).is_none(), "{text}");
        }
        assert!(
            "sha256:00".parse::<KeyHash>().is_err() && format!("sha256:{}", "é".repeat(32)).parse::<KeyHash>().is_err()
        );
    }

    #[test]
    fn a_secret_is_not_shown_by_debug() {
        let key = ApiKey::generate();
        let shown = format!("{key:?} {:?}", key.hash());
        let secret = key.expose().rsplit('_').next().expect("a secret");
        assert!(!shown.contains(secret) && !shown.contains(&key.hash().to_string()[7..]), "{shown}");
    }
}
