//! Seals what clients sent before it is stored, and opens it when it is read, if `encryption.keys_file` names keys:
//! arguments, results, errors, progress, messages, workflows, cron entries, subscriptions with their secrets. So neither
//! Redis nor its files and backups hold their text.
//!
//! XChaCha20-Poly1305 with a random nonce. What is sealed belongs to one place, such as the envelope of one job: a text
//! that was moved to another place cannot be opened. The id of the key is stored beside the text, so that the key can be
//! replaced. Without keys everything is stored as it is, and costs one look at an option.
//!
//! It does not hide names (queues, job types, channels, keys of limits), ids, times, sizes and counts. Who can write to
//! Redis can still delete, repeat and reorder.

mod check;
mod key_ring;

use std::{
    borrow::Cow,
    sync::{Arc, PoisonError, RwLock},
};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use common::settings::EncryptionSettings;

pub use key_ring::KeyFileError;

use self::key_ring::KeyRing;
use crate::{StoreError, StoreResult};

/// The first character of a sealed text. No JSON begins with it, and nothing else that is sealed as text.
const TEXT_MARK: char = '~';

/// Why a sealed value cannot be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// This process has keys, and not this one.
    #[error("it is sealed with key {0:?}, which encryption.keys_file of this process does not have")]
    UnknownKey(String),
    /// This process has no keys.
    #[error("it is sealed with key {0:?}, and this process has no encryption.keys_file")]
    NoKeys(String),
    /// The key is another one of that name, or the value was changed or moved.
    #[error("key {0:?} does not open it: it was changed or moved, or the key is another one of that name")]
    Refused(String),
    /// It is not in the form of a sealed value.
    #[error("it is no sealed value")]
    Malformed,
    /// `encryption.accept_plain` is false.
    #[error("it is not sealed, and encryption.accept_plain is false")]
    Plain,
}

/// Seals and opens, if there are keys. Cheap to clone; clones share the keys.
#[derive(Clone, Default)]
pub struct Sealer(Option<Arc<RwLock<Arc<KeyRing>>>>);

impl Sealer {
    /// Reads the keys that the settings name, if they name any.
    ///
    /// # Errors
    /// The file cannot be read, or something in it is not allowed.
    pub fn from_settings(settings: &EncryptionSettings) -> Result<Self, KeyFileError> {
        let Some(path) = &settings.keys_file else { return Ok(Self::default()) };
        KeyRing::load(path, settings.accept_plain).map(Self::of_ring)
    }

    /// Reads the text of a file of keys.
    ///
    /// # Errors
    /// What is wrong with it, without anything of the text but ids of keys.
    pub fn parse(text: &str, accept_plain: bool) -> Result<Self, String> {
        KeyRing::parse(text, accept_plain).map(Self::of_ring)
    }

    fn of_ring(ring: KeyRing) -> Self {
        Self(Some(Arc::new(RwLock::new(Arc::new(ring)))))
    }

    /// The keys now.
    fn ring(&self) -> Option<Arc<KeyRing>> {
        self.0.as_ref().map(|ring| ring.read().unwrap_or_else(PoisonError::into_inner).clone())
    }

    /// Uses the keys of another one, in all clones.
    ///
    /// # Errors
    /// Its fingerprints are others: processes would not agree on what is unique.
    pub(crate) fn replace_keys(&self, other: &Self) -> Result<(), String> {
        let (Some(current), Some(before), Some(ring)) = (&self.0, self.ring(), other.ring()) else { return Ok(()) };
        if before.fingerprint("") != ring.fingerprint("") {
            return Err("fingerprint_key is another one, which needs a restart of all processes at a time".to_owned());
        }
        *current.write().unwrap_or_else(PoisonError::into_inner) = ring;
        Ok(())
    }

    /// Whether there are keys.
    pub(crate) fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Whether a stored text is sealed.
    pub(crate) fn is_sealed(stored: &str) -> bool {
        stored.starts_with(TEXT_MARK)
    }

    /// A text as it is stored at that place.
    #[must_use]
    pub fn seal<'t>(&self, place: &[&str], text: &'t str) -> Cow<'t, str> {
        let Some(ring) = self.ring() else { return Cow::Borrowed(text) };
        let (id, sealed) = ring.seal(place, text.as_bytes());
        let mut stored = format!("{TEXT_MARK}{id}.");
        BASE64_URL_SAFE_NO_PAD.encode_string(sealed, &mut stored);
        Cow::Owned(stored)
    }

    /// The same for a text that is not needed any more.
    pub(crate) fn seal_owned(&self, place: &[&str], text: String) -> String {
        if self.0.is_none() { text } else { self.seal(place, &text).into_owned() }
    }

    /// The text that was stored at that place. A text that is not sealed was stored before there were keys.
    ///
    /// # Errors
    /// It cannot be opened with these keys, or at this place.
    pub fn open(&self, place: &[&str], stored: String) -> StoreResult<String> {
        if !Self::is_sealed(&stored) {
            return self.accept_plain(stored);
        }
        let (id, sealed) = stored[TEXT_MARK.len_utf8()..].split_once('.').ok_or(OpenError::Malformed)?;
        let sealed = BASE64_URL_SAFE_NO_PAD.decode(sealed).map_err(|_| OpenError::Malformed)?;
        let opened = self.open_with(id, place, &sealed)?;
        String::from_utf8(opened).map_err(|_| OpenError::Malformed.into())
    }

    /// Bytes as they are stored at that place; none if they are stored as they are.
    #[must_use]
    pub fn seal_bytes(&self, place: &[&str], bytes: &[u8]) -> Option<Vec<u8>> {
        let ring = self.ring()?;
        let (id, sealed) = ring.seal(place, bytes);
        let mut stored = Vec::with_capacity(id.len() + 1 + sealed.len());
        stored.extend_from_slice(id.as_bytes());
        stored.push(b'.');
        stored.extend_from_slice(&sealed);
        Some(stored)
    }

    /// The bytes that [`Sealer::seal_bytes`] sealed for that place.
    ///
    /// # Errors
    /// As [`Sealer::open`].
    pub fn open_bytes(&self, place: &[&str], stored: &[u8]) -> StoreResult<Vec<u8>> {
        let end = stored.iter().position(|byte| *byte == b'.').ok_or(OpenError::Malformed)?;
        let id = std::str::from_utf8(&stored[..end]).map_err(|_| OpenError::Malformed)?;
        Ok(self.open_with(id, place, &stored[end + 1..])?)
    }

    /// Passes on what was stored before there were keys.
    pub(crate) fn accept_plain<T>(&self, plain: T) -> StoreResult<T> {
        match self.ring() {
            Some(ring) if !ring.accepts_plain() => Err(OpenError::Plain.into()),
            _ => Ok(plain),
        }
    }

    /// A fingerprint of what clients sent, as it is stored: with keys nobody without them can guess what it stands for. It
    /// stays the same when the key that seals is replaced.
    pub(crate) fn fingerprint<'t>(&self, plain: &'t str) -> Cow<'t, str> {
        self.ring().map_or(Cow::Borrowed(plain), |ring| Cow::Owned(ring.fingerprint(plain)))
    }

    fn open_with(&self, id: &str, place: &[&str], sealed: &[u8]) -> Result<Vec<u8>, OpenError> {
        match self.ring() {
            Some(ring) => ring.open(id, place, sealed),
            None => Err(OpenError::NoKeys(printable_id(id))),
        }
    }
}

impl From<OpenError> for StoreError {
    fn from(error: OpenError) -> Self {
        Self::Sealed(error)
    }
}

/// An id that stands in Redis, where anybody may have written it.
fn printable_id(id: &str) -> String {
    id.chars().take(key_ring::MAX_ID_LENGTH).filter(char::is_ascii_graphic).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OLD: &str = "old = \"MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=\"\n";
    const NEW: &str = "new = \"YWJjZGVmZ2hpamtsbW5vcHFyc3R1dnd4eXphYmNkZWY=\"\n";

    fn sealer(current: &str, keys: &[&str], accept_plain: bool) -> Sealer {
        let text = format!(
            "current = \"{current}\"\nfingerprint_key = \"MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDI=\"\n[keys]\n{}",
            keys.concat()
        );
        Sealer::parse(&text, accept_plain).expect("keys")
    }

    fn refusal<T: std::fmt::Debug>(opened: StoreResult<T>) -> OpenError {
        match opened {
            Err(StoreError::Sealed(error)) => error,
            other => panic!("not refused for its seal: {other:?}"),
        }
    }

    proptest! {
        #[test]
        fn what_is_sealed_is_opened_at_its_place_and_nowhere_else(text in ".{0,60}", bytes in any::<Vec<u8>>(), flip in any::<usize>()) {
            let sealer = sealer("new", &[OLD, NEW], true);
            let stored = sealer.seal(&["e", "q", "1"], &text).into_owned();
            prop_assert!(stored.starts_with("~new.") && (text.len() < 8 || !stored.contains(&text)));
            prop_assert_eq!(sealer.open(&["e", "q", "1"], stored.clone()).expect("opened"), text.clone());
            for place in [&["e", "q", "2"][..], &["h", "q", "1"], &["e", "q1", ""], &["e", "q"], &["e", "q", "1", ""]] {
                prop_assert_eq!(refusal(sealer.open(place, stored.clone())), OpenError::Refused("new".to_owned()));
            }
            let sealed = sealer.seal_bytes(&["m", "c"], &bytes).expect("sealed");
            prop_assert_eq!(sealer.open_bytes(&["m", "c"], &sealed).expect("opened"), bytes);
            let mut changed = sealed;
            let at = flip % changed.len();
            changed[at] ^= 1;
            prop_assert!(sealer.open_bytes(&["m", "c"], &changed).is_err());
            prop_assert!(sealer.open_bytes(&["m", "c"], &changed[..at]).is_err());
        }

        #[test]
        fn no_stored_text_makes_it_panic(text in "~?[ -~é]{0,40}", bytes in any::<Vec<u8>>()) {
            let sealer = sealer("new", &[NEW], true);
            let _ = (sealer.open(&["e"], text), sealer.open_bytes(&["e"], &bytes));
        }
    }

    #[test]
    fn the_same_text_is_never_stored_the_same_way_twice() {
        let sealer = sealer("new", &[NEW], true);
        assert_ne!(sealer.seal(&["e"], "{}"), sealer.seal(&["e"], "{}"));
    }

    #[test]
    fn a_key_can_be_replaced_while_data_of_the_old_one_is_there() {
        let (before, during) = (sealer("old", &[OLD], true), sealer("new", &[OLD, NEW], true));
        let stored = before.seal(&["e"], "[1]").into_owned();
        assert_eq!(during.open(&["e"], stored.clone()).expect("the old key is there"), "[1]");
        assert!(during.seal(&["e"], "[1]").starts_with("~new."));
        assert_eq!(before.fingerprint("f"), during.fingerprint("f"), "uniqueness outlasts a key");
        let after = sealer("new", &[NEW], true);
        assert_eq!(refusal(after.open(&["e"], stored.clone())), OpenError::UnknownKey("old".to_owned()));
        assert_eq!(refusal(Sealer::default().open(&["e"], stored)), OpenError::NoKeys("old".to_owned()));
        let renamed = sealer("old", &[&NEW.replace("new", "old")], true);
        let other = before.seal(&["e"], "[1]").into_owned();
        assert_eq!(refusal(renamed.open(&["e"], other)), OpenError::Refused("old".to_owned()));
    }

    #[test]
    fn all_clones_get_other_keys_unless_uniqueness_would_end() {
        let shared = sealer("old", &[OLD], true);
        let clone = shared.clone();
        clone.replace_keys(&sealer("new", &[OLD, NEW], true)).expect("replaced");
        assert!(shared.seal(&["e"], "{}").starts_with("~new."));
        let text = format!("current = \"new\"\nfingerprint_key = {}[keys]\n{NEW}", NEW.trim_start_matches("new = "));
        let other = Sealer::parse(&text, true).expect("keys");
        assert!(clone.replace_keys(&other).is_err_and(|problem| problem.starts_with("fingerprint_key")));
        assert!(shared.seal(&["e"], "{}").starts_with("~new."));
    }

    #[test]
    fn what_was_stored_before_there_were_keys_is_read_unless_the_settings_refuse_it() {
        assert_eq!(sealer("new", &[NEW], true).open(&["e"], "{}".to_owned()).expect("plain"), "{}");
        assert_eq!(refusal(sealer("new", &[NEW], false).open(&["e"], "{}".to_owned())), OpenError::Plain);
        let off = Sealer::default();
        assert!(matches!(off.seal(&["e"], "{}"), Cow::Borrowed("{}")) && off.seal_bytes(&["e"], b"").is_none());
        assert_eq!(off.fingerprint("f"), "f");
    }
}
