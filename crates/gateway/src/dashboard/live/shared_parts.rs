//! Parts of a page that many readers share: rendered once, and sent to all who were sent the same before as the same bytes.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write,
    sync::{Mutex, PoisonError},
};

use actix_web::web::Bytes;
use sha2::{Digest, Sha256};

use crate::sse;

/// Events that are kept of the parts.
const MAX_FRAMES: usize = 64;

pub(in crate::dashboard) struct SharedParts {
    parts: Vec<SharedPart>,
    /// Events by the parts that they have, a bit for each.
    frames: Mutex<HashMap<u32, Bytes>>,
}

pub(super) struct SharedPart {
    pub(super) name: &'static str,
    pub(super) html: String,
    pub(super) digest: String,
}

impl SharedParts {
    pub(super) fn new(parts: impl IntoIterator<Item = (&'static str, String)>) -> Self {
        let part = |(name, html): (&'static str, String)| SharedPart { name, digest: digest(&html), html };
        Self { parts: parts.into_iter().map(part).collect(), frames: Mutex::default() }
    }

    /// A part as all get it.
    pub(in crate::dashboard) fn part(&self, name: &str) -> &str {
        self.parts.iter().find(|part| part.name == name).map_or("", |part| part.html.as_str())
    }

    /// What tells a stream which parts a page has.
    pub(in crate::dashboard) fn fingerprint(&self) -> String {
        self.parts.iter().map(|part| format!("{}-{}", part.name, part.digest)).collect::<Vec<_>>().join(".")
    }

    /// An event with the parts that are wanted; empty without any.
    pub(super) fn event_with(&self, mut is_wanted: impl FnMut(&SharedPart) -> bool) -> Bytes {
        let wanted = self.parts.iter().enumerate().filter(|&(_, part)| is_wanted(part));
        let bits = wanted.fold(0_u32, |bits, (number, _)| bits | 1 << number);
        if bits == 0 {
            return Bytes::new();
        }
        let mut frames = self.frames.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(frame) = frames.get(&bits) {
            return frame.clone();
        }
        let parts = self.parts.iter().enumerate().filter(|(number, _)| bits & 1 << number != 0);
        let frame = parts_event(parts.map(|(_, part)| (part.name, part.html.as_str())));
        if frames.len() < MAX_FRAMES {
            frames.insert(bits, frame.clone());
        }
        frame
    }
}

/// What the page has, by the name of each part: only what differs is sent.
pub(super) struct SentParts(BTreeMap<String, String>);

impl SentParts {
    /// Those that a page says it has: see [`SharedParts::fingerprint`].
    pub(super) fn of(have: &str) -> Self {
        let pairs = have.split('.').filter_map(|part| part.split_once('-'));
        Self(pairs.map(|(name, digest)| (name.to_owned(), digest.to_owned())).collect())
    }

    /// Whether a part with that digest was not sent last; now it is.
    pub(super) fn differs(&mut self, name: &str, digest: &str) -> bool {
        match self.0.get_mut(name) {
            Some(sent) if sent == digest => false,
            Some(sent) => {
                digest.clone_into(sent);
                true
            }
            None => {
                self.0.insert(name.to_owned(), digest.to_owned());
                true
            }
        }
    }
}

/// An event with parts of a page.
pub(super) fn parts_event<'p>(parts: impl Iterator<Item = (&'p str, &'p str)>) -> Bytes {
    let parts: serde_json::Map<String, serde_json::Value> =
        parts.map(|(name, html)| (name.to_owned(), html.into())).collect();
    let mut frames = String::new();
    sse::push_event(&mut frames, None, "parts", &serde_json::Value::Object(parts).to_string());
    frames.into()
}

/// A few digits that stand for the HTML of a part.
pub(in crate::dashboard) fn digest(html: &str) -> String {
    Sha256::digest(html)[..6].iter().fold(String::with_capacity(12), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_who_lack_the_same_parts_get_the_same_bytes() {
        let parts = SharedParts::new([("a", "<b>1</b>".to_owned()), ("b", "2".to_owned())]);
        let (first, second) = (parts.event_with(|_| true), parts.event_with(|_| true));
        assert_eq!(first.as_ptr(), second.as_ptr(), "rendered once");
        assert_eq!(&first[..], b"event: parts\ndata: {\"a\":\"<b>1</b>\",\"b\":\"2\"}\n\n");
        let other = parts.event_with(|part| part.name == "b");
        assert_eq!(&other[..], b"event: parts\ndata: {\"b\":\"2\"}\n\n");
        assert!(parts.event_with(|_| false).is_empty());
        assert_eq!(parts.fingerprint(), format!("a-{}.b-{}", digest("<b>1</b>"), digest("2")));
    }
}
