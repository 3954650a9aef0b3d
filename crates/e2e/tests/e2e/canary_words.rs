//! Random words that tests plant, to look for them where they must not be.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
};

/// The random words, by the place where they were put.
#[derive(Default)]
pub(crate) struct Canaries(Mutex<Vec<(&'static str, String)>>);

impl Canaries {
    /// A new word.
    pub(crate) fn plant(&self, place: &'static str) -> String {
        let word = format!("cnry{:032x}", rand::random::<u128>());
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((place, word.clone()));
        word
    }

    /// A new secret that signs requests.
    pub(crate) fn plant_signing_secret(&self, place: &'static str) -> String {
        let secret = format!("whsec_{:044}", u128::from(rand::random::<u64>()));
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((place, secret["whsec_".len()..].to_owned()));
        secret
    }

    /// Something that Galley made, such as a token.
    pub(crate) fn plant_known(&self, place: &'static str, word: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((place, word.to_owned()));
    }

    pub(crate) fn places(&self) -> BTreeSet<&'static str> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().map(|(place, _)| *place).collect()
    }

    /// The places whose words are in that text.
    pub(crate) fn found_in(&self, bytes: &[u8]) -> BTreeSet<&'static str> {
        let text = String::from_utf8_lossy(bytes);
        let planted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        planted.iter().filter(|(_, word)| text.contains(word)).map(|(place, _)| *place).collect()
    }
}

/// Whether what is there may be in no answer but the one that hands it out.
pub(crate) fn is_credential(place: &str) -> bool {
    ["secret", "header", "key", "token", "wrong token"].iter().any(|kind| place.starts_with(kind))
}
