//! What members say of themselves, as Redis has it. With keys of encryption it is sealed, and each seal is another text: a mark
//! behind it tells whether the info is the same.

use std::borrow::Cow;

use crate::{StoreResult, sealing::Sealer};
use common::name::ChannelName;
use model::{MemberId, MemberInfo};

/// Stores and reads the info of the members of a channel.
pub(super) struct StoredInfos<'a> {
    pub(super) sealer: &'a Sealer,
    pub(super) channel: &'a ChannelName,
}

impl StoredInfos<'_> {
    /// An info as it is stored, and the mark at its end if it is sealed.
    pub(super) fn seal<'t>(&self, member: &MemberId, info: &'t MemberInfo) -> (Cow<'t, str>, String) {
        let plain = info.as_stored();
        if plain.is_empty() || !self.sealer.is_on() {
            return (Cow::Borrowed(plain), String::new());
        }
        let place = self.place(member);
        let mark = self.sealer.fingerprint(&format!("{} {plain}", place.join(" "))).into_owned();
        let sealed = self.sealer.seal(&place, plain);
        (Cow::Owned(format!("{sealed} {mark}")), mark)
    }

    /// Reads what is stored. An info that cannot be opened here is none: the member is there all the same.
    pub(super) fn open(&self, member: &MemberId, stored: &str) -> MemberInfo {
        let opened = self.try_open(member, stored).inspect_err(|error| {
            tracing::debug!(%error, channel = %self.channel, "the info of a member cannot be read");
        });
        opened.map_or_else(|_| MemberInfo::default(), |plain| MemberInfo::from_stored(&plain))
    }

    fn try_open(&self, member: &MemberId, stored: &str) -> StoreResult<String> {
        if stored.is_empty() {
            return Ok(String::new());
        }
        let sealed = if Sealer::is_sealed(stored) { stored.split(' ').next().unwrap_or_default() } else { stored };
        self.sealer.open(&self.place(member), sealed.to_owned())
    }

    fn place<'t>(&'t self, member: &'t MemberId) -> [&'t str; 3] {
        ["presence", self.channel.as_str(), member.as_str()]
    }
}
