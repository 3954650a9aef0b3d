//! All members of a channel as a gateway knows them, and the events that clients get.

use std::{collections::BTreeMap, sync::Arc};

use super::stored_info::StoredInfos;
use common::{
    json::ObjectWriter,
    name::ChannelName,
    time::{self, Millis},
};
use model::{MemberId, MemberInfo};

/// A member of a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelMember {
    /// Its id.
    pub id: MemberId,
    /// When it joined.
    pub since: Millis,
    /// What it says of itself.
    pub info: MemberInfo,
}

impl ChannelMember {
    /// The member as clients see it, on one line.
    #[must_use]
    pub fn to_json(&self) -> String {
        let mut json = ObjectWriter::default();
        self.write(&mut json);
        json.finish()
    }

    fn write(&self, json: &mut ObjectWriter) {
        json.text("member", self.id.as_str()).text("since", &time::format(self.since));
        if !self.info.as_stored().is_empty() {
            json.raw("info", self.info.as_stored());
        }
    }
}

/// What a watcher is told.
#[derive(Debug, Clone)]
pub struct PresenceEvent {
    /// `members`, `join`, `update` or `leave`.
    pub kind: &'static str,
    /// The event as clients see it, on one line.
    pub json: Arc<str>,
}

/// A change of one member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum MemberChange {
    /// It joined or has other info.
    Present(ChannelMember),
    Left(MemberId),
}

impl MemberChange {
    /// Reads `<version> <kind> <member> <since> <info>`, as `lua/presence.lua` writes it.
    pub(super) fn parse(infos: &StoredInfos<'_>, payload: &[u8]) -> Option<(u64, Self)> {
        let mut parts = std::str::from_utf8(payload).ok()?.splitn(4, ' ');
        let (version, kind, member, value) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let change = match kind {
            "join" | "update" => Self::Present(parse_member(infos, member, value)?),
            "leave" => Self::Left(member.parse().ok()?),
            _ => return None,
        };
        Some((version.parse().ok()?, change))
    }
}

/// A member as it is stored: when it joined, and its info.
pub(super) fn parse_member(infos: &StoredInfos<'_>, id: &str, value: &str) -> Option<ChannelMember> {
    let (since, info) = value.split_once(' ')?;
    let id: MemberId = id.parse().ok()?;
    let info = infos.open(&id, info);
    Some(ChannelMember { id, since: since.parse().ok()?, info })
}

/// The members of a channel at a version.
#[derive(Default)]
pub(super) struct MemberView {
    pub(super) version: u64,
    members: BTreeMap<MemberId, ChannelMember>,
    /// The event with all members, once somebody needed it.
    all: Option<PresenceEvent>,
}

impl MemberView {
    pub(super) fn new(version: u64, members: Vec<ChannelMember>) -> Self {
        let members = members.into_iter().map(|member| (member.id.clone(), member)).collect();
        Self { version, members, all: None }
    }

    /// Applies a change, and gives the event that tells it; none if nothing changes.
    pub(super) fn apply(&mut self, channel: &ChannelName, change: MemberChange) -> Option<PresenceEvent> {
        let (kind, member) = match change {
            MemberChange::Present(member) => {
                let before = self.members.insert(member.id.clone(), member.clone());
                if before.as_ref() == Some(&member) {
                    return None;
                }
                (if before.is_some() { "update" } else { "join" }, member)
            }
            MemberChange::Left(id) => ("leave", self.members.remove(&id)?),
        };
        self.all = None;
        let mut json = ObjectWriter::default();
        json.text("channel", channel.as_str());
        member.write(&mut json);
        Some(PresenceEvent { kind, json: json.finish().into() })
    }

    /// What changes between this and a later one.
    pub(super) fn changes_to(&self, later: &Self) -> Vec<MemberChange> {
        let gone = self.members.keys().filter(|id| !later.members.contains_key(*id));
        let gone: Vec<MemberChange> = gone.cloned().map(MemberChange::Left).collect();
        let is_new = |member: &&ChannelMember| self.members.get(&member.id) != Some(*member);
        let new = later.members.values().filter(is_new).cloned().map(MemberChange::Present);
        gone.into_iter().chain(new).collect()
    }

    /// The event with all members.
    pub(super) fn all(&mut self, channel: &ChannelName) -> PresenceEvent {
        let members = &self.members;
        let all = self.all.get_or_insert_with(|| {
            let mut json = ObjectWriter::default();
            let each: Vec<String> = members.values().map(ChannelMember::to_json).collect();
            json.text("channel", channel.as_str()).raw("members", &format!("[{}]", each.join(",")));
            PresenceEvent { kind: "members", json: json.finish().into() }
        });
        all.clone()
    }
}
