//! What Redis is asked: all keys of a call are of one channel.

use std::{sync::Arc, time::Duration};

use redis::{RedisError, RedisResult, Value};

use super::{
    PresenceInner, PresentChannel,
    stored_info::StoredInfos,
    view::{ChannelMember, parse_member},
};
use crate::{StoreResult, keys, script};
use common::name::ChannelName;
use model::{MemberId, MemberInfo};

impl PresenceInner {
    pub(super) fn infos<'a>(&'a self, channel: &'a ChannelName) -> StoredInfos<'a> {
        StoredInfos { sealer: self.channels.redis.sealer(), channel }
    }

    /// Where scripts publish events.
    fn topic_of_script(&self, channel: &ChannelName) -> String {
        self.topic_names.for_script(self.topic_names.presence(channel))
    }

    /// The version of the members and all of them, by id. Those of gateways that are gone are left out, or stay until they
    /// leave: after an outage they may only be late.
    pub(super) async fn read_members(
        &self,
        channel: &ChannelName,
        leaves_out_ended: bool,
    ) -> StoreResult<(u64, Vec<ChannelMember>)> {
        let mut call = script::READ_MEMBERS.key(keys::channel_members(channel));
        call.key(keys::member_gateways(channel)).arg(u8::from(leaves_out_ended));
        let answer: Vec<String> = call.invoke_async(&mut self.channels.redis.clone()).await?;
        let version = answer.first().and_then(|version| version.parse().ok()).unwrap_or_default();
        let (pairs, _) = answer.get(1..).unwrap_or_default().as_chunks::<2>();
        let mut members: Vec<ChannelMember> =
            pairs.iter().filter_map(|[member, value]| parse_member(&self.infos(channel), member, value)).collect();
        members.sort_by(|a, b| a.id.cmp(&b.id));
        Ok((version, members))
    }

    pub(super) async fn join_members(
        &self,
        channel: &ChannelName,
        members: &[(MemberId, MemberInfo)],
    ) -> StoreResult<Vec<bool>> {
        let mut call = script::JOIN_MEMBERS.key(keys::channel_members(channel));
        call.key(keys::member_gateways(channel)).arg(&self.gateway).arg(millis(self.lease()));
        call.arg(self.settings.presence_max_members).arg(self.topic_of_script(channel));
        for (member, info) in members {
            let (stored, mark) = self.infos(channel).seal(member, info);
            call.arg(member.as_str()).arg(&*stored).arg(mark);
        }
        Ok(call.invoke_async(&mut self.channels.redis.clone()).await?)
    }

    pub(super) async fn leave_members(&self, channel: &ChannelName, members: &[MemberId]) -> StoreResult<()> {
        let mut call = script::LEAVE_MEMBERS.key(keys::channel_members(channel));
        call.arg(&self.gateway).arg(self.topic_of_script(channel));
        for member in members {
            call.arg(member.as_str());
        }
        let _: i64 = call.invoke_async(&mut self.channels.redis.clone()).await?;
        Ok(())
    }

    /// Whether this gateway had a lease on each of the channels, and the version of its members.
    pub(super) async fn renew_leases(
        &self,
        channels: &[Arc<PresentChannel>],
        lease: Duration,
        may_prune: bool,
    ) -> Vec<StoreResult<(bool, u64)>> {
        let calls: Vec<_> = channels
            .iter()
            .map(|channel| {
                let mut call = script::RENEW_MEMBERS.key(keys::channel_members(&channel.name));
                call.key(keys::member_gateways(&channel.name)).arg(&self.gateway).arg(millis(lease));
                call.arg(self.topic_of_script(&channel.name));
                call.arg(u8::from(channel.local().has_stored_members())).arg(u8::from(may_prune));
                call
            })
            .collect();
        let answers = script::invoke_each(&mut self.channels.redis.clone(), &calls).await;
        let read =
            |answer: RedisResult<Value>| Ok(redis::from_redis_value::<(bool, u64)>(answer?).map_err(RedisError::from)?);
        answers.into_iter().map(read).collect()
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
