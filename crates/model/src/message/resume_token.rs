//! The positions of a stream of several channels as one opaque id: a tilde, then 18 bytes for each channel in
//! base64url.
//!
//! A hash of its name stands for a channel, so that an id of a hundred channels still fits into a header.

use std::str::FromStr;

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};

use super::Position;
use common::{
    hash::fnv1a,
    name::{ChannelName, NameError},
};

/// The first character, which no position has.
const TOKEN_PREFIX: char = '~';
/// Bytes of each of the three numbers of a channel.
const NUMBER_BYTES: usize = 6;
/// Channels in one id.
const MAX_CHANNELS: usize = 1000;

/// Positions in several channels.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResumeToken(Vec<(u64, Position)>);

impl ResumeToken {
    /// The position in a channel, if the token has one.
    #[must_use]
    pub fn position(&self, channel: &ChannelName) -> Option<Position> {
        let hash = hash_channel(channel);
        self.0.iter().find(|(known, _)| *known == hash).map(|(_, position)| *position)
    }

    /// Whether the token has positions, but none of these channels.
    #[must_use]
    pub fn has_only_other_channels(&self, channels: &[ChannelName]) -> bool {
        !self.0.is_empty() && !channels.is_empty() && channels.iter().all(|channel| self.position(channel).is_none())
    }

    /// The id of these positions, and of the others in channels that these lack.
    #[must_use]
    pub fn encode<'a>(positions: impl Iterator<Item = (&'a ChannelName, Position)>, others: Option<&Self>) -> String {
        let mut all: Vec<(u64, Position)> =
            positions.map(|(channel, position)| (hash_channel(channel), position)).collect();
        let here = all.len();
        for other in others.map_or(&[][..], |others| &others.0) {
            if all.len() < MAX_CHANNELS && !all[..here].iter().any(|(channel, _)| *channel == other.0) {
                all.push(*other);
            }
        }
        let mut bytes = Vec::with_capacity(all.len() * 3 * NUMBER_BYTES);
        for (channel, position) in all {
            for number in [channel, position.epoch, position.sequence] {
                bytes.extend(&number.to_be_bytes()[8 - NUMBER_BYTES..]);
            }
        }
        let mut id = String::with_capacity(1 + bytes.len() * 4 / 3);
        id.push(TOKEN_PREFIX);
        BASE64_URL_SAFE_NO_PAD.encode_string(bytes, &mut id);
        id
    }
}

impl FromStr for ResumeToken {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let refused = || NameError::new("position", "be the id of a message of a stream of several channels", text);
        let encoded =
            text.strip_prefix(TOKEN_PREFIX).filter(|encoded| encoded.len() <= MAX_CHANNELS * NUMBER_BYTES * 4);
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(encoded.ok_or_else(refused)?).map_err(|_| refused())?;
        let (channels, rest) = bytes.as_chunks::<{ 3 * NUMBER_BYTES }>();
        if !rest.is_empty() {
            return Err(refused());
        }
        let number = |bytes: &[u8]| bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
        let read = |entry: &[u8; 3 * NUMBER_BYTES]| {
            let position = Position {
                epoch: number(&entry[NUMBER_BYTES..2 * NUMBER_BYTES]),
                sequence: number(&entry[2 * NUMBER_BYTES..]),
            };
            (number(&entry[..NUMBER_BYTES]), position)
        };
        Ok(Self(channels.iter().map(read).collect()))
    }
}

/// FNV-1a, cut to 48 bits.
fn hash_channel(channel: &ChannelName) -> u64 {
    fnv1a(channel.as_str()) >> 16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_reads_back_and_anything_else_is_refused() {
        let names: Vec<ChannelName> =
            ["a", "b", "task:pubsub:channel"].map(|name| name.parse().expect("a name")).into();
        let positions: Vec<Position> =
            (0..3).map(|n| Position { epoch: 1_764_000_000_000 + n, sequence: n * 1_000_000_007 }).collect();
        let id = ResumeToken::encode(names.iter().zip(positions.iter().copied()), None);
        assert_eq!(id.len(), 1 + 3 * 24);
        assert_eq!("~".parse(), Ok(ResumeToken::default()), "a stream in which there is no channel yet");
        let resume: ResumeToken = id.parse().expect("an id");
        for (name, position) in names.iter().zip(&positions) {
            assert_eq!(resume.position(name), Some(*position));
        }
        assert_eq!(resume.position(&"c".parse().expect("a name")), None);
        let moved = [(&names[1], Position::START)];
        let merged: ResumeToken = ResumeToken::encode(moved.into_iter(), Some(&resume)).parse().expect("an id");
        let of = |index: usize| merged.position(&names[index]);
        assert_eq!([of(0), of(1), of(2)], [Some(positions[0]), Some(Position::START), Some(positions[2])]);
        assert_eq!(merged.0.len(), 3);
        for bad in ["", "1764000000000-0", "~AAAA", "~?", &format!("~{}", "A".repeat(24 * 1001))] {
            assert!(bad.parse::<ResumeToken>().is_err(), "{bad}");
        }
    }
}
