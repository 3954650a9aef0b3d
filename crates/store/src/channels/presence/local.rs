//! Members and watchers of one channel at this gateway. Pure: what is to be written and told follows from what is here.

use std::collections::BTreeMap;

use tokio::{
    sync::mpsc::{self, error::TrySendError},
    time::Instant,
};

use super::view::{ChannelMember, MemberChange, MemberView, PresenceEvent};
use common::name::ChannelName;
use model::{MemberId, MemberInfo};

/// Maximum number of members in one write.
const MEMBERS_PER_CALL: usize = 200;

/// What this gateway has of a channel.
#[derive(Default)]
pub(super) struct LocalPresence {
    members: BTreeMap<MemberId, LocalMember>,
    pub(super) watchers: Vec<PresenceWatcher>,
    last_watcher: u64,
    /// All members of the channel, for its watchers.
    pub(super) view: Option<MemberView>,
    pub(super) is_loading: bool,
    /// Whether the members were read once more, because an event was newer.
    has_read_again: bool,
    /// The version of the last event.
    last_heard: u64,
}

/// A member with connections here, or that had one a moment ago.
#[derive(Default)]
struct LocalMember {
    connections: usize,
    info: MemberInfo,
    /// What Redis has; none if it does not have the member from here.
    stored: Option<MemberInfo>,
    /// There are too many members: it is tried again with the next renewal.
    is_refused: bool,
    /// When it leaves, without connections.
    leaves_at: Option<Instant>,
}

/// Somebody who is told.
pub(super) struct PresenceWatcher {
    id: u64,
    sender: mpsc::Sender<PresenceEvent>,
    /// It gets all members next: it has none yet, or has missed something.
    needs_all: bool,
}

/// What is to be written next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum SyncPlan {
    Join(Vec<(MemberId, MemberInfo)>),
    Leave(Vec<MemberId>),
    Nothing,
}

impl LocalMember {
    fn is_wanted(&self, now: Instant) -> bool {
        self.connections > 0 || self.leaves_at.is_some_and(|leaves_at| leaves_at > now)
    }
}

impl LocalPresence {
    /// Whether there is nothing of the channel here, and nothing to write.
    pub(super) fn is_idle(&self) -> bool {
        self.members.is_empty() && self.watchers.is_empty()
    }

    /// A connection of a member opens. The newest info counts.
    pub(super) fn connect(&mut self, member: &MemberId, info: MemberInfo) {
        let local = self.members.entry(member.clone()).or_default();
        local.connections += 1;
        if local.connections == 1 {
            metrics::gauge!("galley_channel_members").increment(1.0);
        }
        (local.info, local.leaves_at, local.is_refused) = (info, None, false);
    }

    /// A connection of a member closes. True if it was its last one here.
    pub(super) fn disconnect(&mut self, member: &MemberId, leaves_at: Instant) -> bool {
        let Some(local) = self.members.get_mut(member) else { return false };
        local.connections = local.connections.saturating_sub(1);
        if local.connections > 0 {
            return false;
        }
        metrics::gauge!("galley_channel_members").decrement(1.0);
        local.leaves_at = Some(leaves_at);
        true
    }

    pub(super) fn is_refused(&self, member: &MemberId) -> bool {
        self.members.get(member).is_some_and(|local| local.is_refused)
    }

    pub(super) fn has_stored_members(&self) -> bool {
        self.members.values().any(|local| local.stored.is_some())
    }

    /// What is to be written. Members that have left and are not written are forgotten.
    pub(super) fn plan(&mut self, now: Instant) -> SyncPlan {
        self.members.retain(|_, local| local.stored.is_some() || local.is_wanted(now));
        let leaving = self.members.iter().filter(|(_, local)| !local.is_wanted(now)).map(|(member, _)| member.clone());
        let leaving: Vec<MemberId> = leaving.take(MEMBERS_PER_CALL).collect();
        if !leaving.is_empty() {
            return SyncPlan::Leave(leaving);
        }
        let joins = |local: &LocalMember| local.stored.as_ref() != Some(&local.info) && !local.is_refused;
        let joining = self.members.iter().filter(|(_, local)| joins(local));
        let joining: Vec<_> =
            joining.take(MEMBERS_PER_CALL).map(|(member, local)| (member.clone(), local.info.clone())).collect();
        if joining.is_empty() { SyncPlan::Nothing } else { SyncPlan::Join(joining) }
    }

    /// Members were written, or refused. Without a lease before, Redis had none of the others.
    pub(super) fn joined(
        &mut self,
        members: &[(MemberId, MemberInfo)],
        answers: impl Iterator<Item = bool>,
        had_lease: bool,
    ) {
        if !had_lease {
            self.forget_stored();
        }
        for ((member, info), is_taken) in members.iter().zip(answers) {
            let Some(local) = self.members.get_mut(member) else { continue };
            if is_taken { local.stored = Some(info.clone()) } else { local.is_refused = true }
        }
    }

    pub(super) fn left(&mut self, members: &[MemberId]) {
        for member in members {
            if let Some(local) = self.members.get_mut(member) {
                local.stored = None;
            }
        }
    }

    fn forget_stored(&mut self) {
        self.members.values_mut().for_each(|local| local.stored = None);
    }

    /// The lease was renewed, and the members have that version. True if they are to be read again.
    pub(super) fn renewed(&mut self, has_lease: bool, version: u64, channel: &ChannelName) -> bool {
        if !has_lease {
            self.forget_stored();
        }
        self.members.values_mut().for_each(|local| local.is_refused = false);
        self.tell_late_watchers(channel);
        let is_old = |view: &MemberView| view.version < version || version == 0 && view.version > 0;
        !self.watchers.is_empty() && self.view.as_ref().is_none_or(is_old)
    }

    pub(super) fn add_watcher(&mut self, sender: mpsc::Sender<PresenceEvent>, channel: &ChannelName) -> u64 {
        self.last_watcher += 1;
        self.watchers.push(PresenceWatcher { id: self.last_watcher, sender, needs_all: true });
        self.tell_late_watchers(channel);
        self.last_watcher
    }

    /// True if it was the last one.
    pub(super) fn remove_watcher(&mut self, id: u64) -> bool {
        self.watchers.retain(|watcher| watcher.id != id);
        if self.watchers.is_empty() {
            self.view = None;
        }
        self.watchers.is_empty()
    }

    /// Takes an event of another gateway, or of this one. False if the one before it is missing.
    pub(super) fn hear(&mut self, channel: &ChannelName, version: u64, change: MemberChange) -> bool {
        self.last_heard = self.last_heard.max(version);
        // Without members yet it is read with them
        let Some(view) = &mut self.view else { return true };
        if version <= view.version {
            return true;
        }
        if version != view.version + 1 {
            return false;
        }
        view.version = version;
        let told = view.apply(channel, change);
        self.tell(channel, told);
        true
    }

    /// Whether the members are to be read, and nobody reads them yet.
    pub(super) fn begin_load(&mut self) -> bool {
        let begins = !self.is_loading && !self.watchers.is_empty();
        self.is_loading |= begins;
        begins
    }

    /// Takes the members that were read. False if they must be read once more.
    pub(super) fn accept(&mut self, channel: &ChannelName, version: u64, members: Vec<ChannelMember>) -> bool {
        if self.last_heard > version && !self.has_read_again {
            self.has_read_again = true;
            return false;
        }
        (self.last_heard, self.is_loading, self.has_read_again) = (version, false, false);
        let later = MemberView::new(version, members);
        if self.watchers.is_empty() {
            return true;
        }
        let Some(mut view) = self.view.replace(later) else {
            self.tell_late_watchers(channel);
            return true;
        };
        let changes = self.view.as_ref().map(|later| view.changes_to(later)).unwrap_or_default();
        let told: Vec<_> = changes.into_iter().filter_map(|change| view.apply(channel, change)).collect();
        self.tell(channel, told);
        true
    }

    fn tell(&mut self, channel: &ChannelName, events: impl IntoIterator<Item = PresenceEvent>) {
        for event in events {
            for watcher in self.watchers.iter_mut().filter(|watcher| !watcher.needs_all) {
                if let Err(TrySendError::Full(_)) = watcher.sender.try_send(event.clone()) {
                    watcher.needs_all = true;
                }
            }
        }
        self.tell_late_watchers(channel);
    }

    /// Sends all members to those who have none yet or have missed something, if they read again.
    fn tell_late_watchers(&mut self, channel: &ChannelName) {
        let Some(view) = &mut self.view else { return };
        for watcher in self.watchers.iter_mut().filter(|watcher| watcher.needs_all) {
            if let Ok(room) = watcher.sender.try_reserve() {
                room.send(view.all(channel));
                watcher.needs_all = false;
            }
        }
    }
}

#[cfg(test)]
mod tests;
