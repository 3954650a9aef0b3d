//! The keys of `encryption.keys_file`.

use std::{collections::BTreeMap, fmt, fs, path::Path};

use base64::{Engine, prelude::BASE64_STANDARD};
use chacha20poly1305::{
    KeyInit, XChaCha20Poly1305, XNonce,
    aead::{Aead, Payload},
};
use hmac::{Hmac, Mac};
use serde::Deserialize;
use sha2::Sha256;

use super::OpenError;

/// Bytes of a key.
const KEY_BYTES: usize = 32;
/// Bytes of a nonce. Random ones of that length do not repeat, however much is sealed.
const NONCE_BYTES: usize = 24;
/// Longest id of a key.
pub(super) const MAX_ID_LENGTH: usize = 32;
/// Most keys of a file.
const MAX_KEYS: usize = 16;

/// Why a file of keys cannot be used. It never shows what the file holds.
#[derive(Debug, thiserror::Error)]
#[error("encryption.keys_file: {path}: {problem}")]
pub struct KeyFileError {
    path: String,
    problem: String,
}

/// Keys by their ids, one of which seals.
pub(super) struct KeyRing {
    ciphers: BTreeMap<String, XChaCha20Poly1305>,
    current: String,
    fingerprints: Hmac<Sha256>,
    accepts_plain: bool,
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyRing").field("current", &self.current).finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyFile {
    current: String,
    fingerprint_key: String,
    keys: BTreeMap<String, String>,
}

impl KeyRing {
    pub(super) fn load(path: &Path, accepts_plain: bool) -> Result<Self, KeyFileError> {
        let text = fs::read_to_string(path).map_err(|error| error.to_string());
        text.and_then(|text| Self::parse(&text, accepts_plain))
            .map_err(|problem| KeyFileError { path: path.display().to_string(), problem })
    }

    /// Reads the text of a file; the error is a message for people, without anything of the text but ids.
    pub(super) fn parse(text: &str, accepts_plain: bool) -> Result<Self, String> {
        // The parser's own message would quote the line
        let file: KeyFile = toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(1, |span| text[..span.start].matches('\n').count() + 1);
            format!(
                "line {line}: must be TOML with current = \"<id>\", fingerprint_key = \"<base64>\" and a table [keys] of \
                 <id> = \"<base64>\", and nothing else"
            )
        })?;
        if !(1..=MAX_KEYS).contains(&file.keys.len()) {
            return Err(format!("[keys] must have 1 to {MAX_KEYS} keys"));
        }
        let mut ciphers = BTreeMap::new();
        for (id, text) in &file.keys {
            if !is_key_id(id) {
                return Err(format!("the id of a key must match ^[A-Za-z0-9_-]{{1,{MAX_ID_LENGTH}}}$, got {id:?}"));
            }
            let key = decode_key(text).ok_or_else(|| wrong_key(&format!("keys.{id}")))?;
            ciphers.insert(id.clone(), XChaCha20Poly1305::new(&key.into()));
        }
        if !ciphers.contains_key(&file.current) {
            return Err("current must be the id of one of the keys".to_owned());
        }
        let key = decode_key(&file.fingerprint_key).ok_or_else(|| wrong_key("fingerprint_key"))?;
        let fingerprints = Hmac::<Sha256>::new_from_slice(&key).map_err(|_| wrong_key("fingerprint_key"))?;
        Ok(Self { ciphers, current: file.current, fingerprints, accepts_plain })
    }

    /// The id of the current key, and nonce and ciphertext.
    pub(super) fn seal(&self, place: &[&str], plain: &[u8]) -> (&str, Vec<u8>) {
        let nonce: [u8; NONCE_BYTES] = rand::random();
        let aad = place_bytes(place);
        let payload = Payload { msg: plain, aad: &aad };
        // Only 256 GiB and more cannot be sealed. Without a text it cannot be opened either: nothing is stored as it is
        let text = self.ciphers[&self.current].encrypt(&XNonce::from(nonce), payload).unwrap_or_default();
        (&self.current, [&nonce[..], &text].concat())
    }

    pub(super) fn open(&self, id: &str, place: &[&str], sealed: &[u8]) -> Result<Vec<u8>, OpenError> {
        let cipher = self.ciphers.get(id).ok_or_else(|| OpenError::UnknownKey(super::printable_id(id)))?;
        let (nonce, text) = sealed.split_first_chunk::<NONCE_BYTES>().ok_or(OpenError::Malformed)?;
        let aad = place_bytes(place);
        let payload = Payload { msg: text, aad: &aad };
        cipher.decrypt(&XNonce::from(*nonce), payload).map_err(|_| OpenError::Refused(id.to_owned()))
    }

    pub(super) fn accepts_plain(&self) -> bool {
        self.accepts_plain
    }

    pub(super) fn current(&self) -> &str {
        &self.current
    }

    pub(super) fn has(&self, id: &str) -> bool {
        self.ciphers.contains_key(id)
    }

    /// 64 hex digits.
    pub(super) fn fingerprint(&self, plain: &str) -> String {
        use fmt::Write;
        let mut mac = self.fingerprints.clone();
        mac.update(plain.as_bytes());
        mac.finalize().into_bytes().iter().fold(String::with_capacity(64), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        })
    }
}

fn is_key_id(id: &str) -> bool {
    (1..=MAX_ID_LENGTH).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

fn wrong_key(name: &str) -> String {
    format!("{name} must be {KEY_BYTES} random bytes in base64: openssl rand -base64 {KEY_BYTES}")
}

fn decode_key(text: &str) -> Option<[u8; KEY_BYTES]> {
    let key: [u8; KEY_BYTES] = BASE64_STANDARD.decode(text.trim()).ok()?.try_into().ok()?;
    // What somebody left in from an example is no secret
    (key.iter().any(|byte| *byte != key[0])).then_some(key)
}

/// A place as bytes, so that no two places are the same ones.
fn place_bytes(place: &[&str]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(place.iter().map(|part| part.len() + 8).sum());
    for part in place {
        bytes.extend_from_slice(&(part.len() as u64).to_be_bytes());
        bytes.extend_from_slice(part.as_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=";

    fn file(current: &str, fingerprint: &str, keys: &str) -> String {
        format!("current = \"{current}\"\nfingerprint_key = \"{fingerprint}\"\n[keys]\n{keys}")
    }

    #[test]
    fn each_wrong_file_is_refused_and_no_message_shows_a_key() {
        let secret = "c2VjcmV0";
        for (text, expected) in [
            (String::new(), "line 1: must be TOML"),
            (format!("current = \"a\"\nfingerprint_key = {secret}\n"), "line 2: must be TOML"),
            (file("a", GOOD, &format!("a = \"{GOOD}\"\n[other]\nx = \"{secret}\"")), "must be TOML"),
            (file("a", GOOD, ""), "[keys] must have 1 to 16 keys"),
            (file("b", GOOD, &format!("a = \"{GOOD}\"")), "current must be the id of one of the keys"),
            (file("a", GOOD, &format!("a = \"{secret}\"")), "keys.a must be 32 random bytes"),
            (file("a", secret, &format!("a = \"{GOOD}\"")), "fingerprint_key must be 32 random bytes"),
            (file("a.b", GOOD, &format!("\"a.b\" = \"{GOOD}\"")), "the id of a key must match"),
            (file("a", GOOD, "a = \"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\""), "keys.a must be 32 random bytes"),
        ] {
            let error = KeyRing::parse(&text, true).expect_err(&text);
            assert!(error.contains(expected) && !error.contains(secret) && !error.contains(GOOD), "{text}: {error}");
        }
        let missing = KeyRing::load(Path::new("/no/such/keys.toml"), true).expect_err("no file").to_string();
        assert!(missing.starts_with("encryption.keys_file: /no/such/keys.toml: "), "{missing}");
    }

    #[test]
    fn its_debug_form_shows_no_key() {
        let ring = KeyRing::parse(&file("a", GOOD, &format!("a = \"{GOOD}\"")), true).expect("keys");
        assert_eq!(format!("{ring:?}"), "KeyRing { current: \"a\", .. }");
    }
}
