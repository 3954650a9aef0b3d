//! The live workers of a subscription. They agree on which worker delivers a channel in order without talking to each
//! other.

use std::time::Duration;

use sha2::{Digest, Sha256};

use super::Subscriptions;
use crate::{StoreResult, keys};
use common::name::{ChannelName, WorkerId};
use model::subscription::Subscription;

/// The workers of a subscription.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SubscriptionWorkers(Vec<WorkerId>);

impl SubscriptionWorkers {
    /// Whether that worker should deliver a channel. All workers with the same list agree, and when a worker comes or
    /// goes, only its channels change hands.
    #[must_use]
    pub fn is_preferred(&self, worker: &WorkerId, channel: &ChannelName) -> bool {
        // The hash must be the same in every build: workers of two versions share a subscription during an update. No
        // name contains a space
        let weight = |member: &WorkerId| Sha256::digest(format!("{member} {channel}"));
        self.0.iter().max_by_key(|member| weight(member)).is_none_or(|preferred| preferred == worker)
    }
}

impl Subscriptions {
    /// Registers a worker and returns the live ones: those that were not silent for `max_silence`.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn register_worker(
        &self,
        subscription: &Subscription,
        worker: &WorkerId,
        max_silence: Duration,
    ) -> StoreResult<SubscriptionWorkers> {
        let now = self.jobs.now().await?;
        let gone = now - i64::try_from(max_silence.as_millis()).unwrap_or(i64::MAX);
        let key = keys::subscription_workers(&subscription.name);
        let mut pipeline = redis::pipe();
        pipeline.cmd("ZADD").arg(&key).arg(now).arg(worker.as_str()).ignore();
        pipeline.cmd("ZREMRANGEBYSCORE").arg(&key).arg("-inf").arg(gone).ignore();
        // Redis's clock was set back: live workers register again, and a dead one must not stay until its time is
        // reached again
        pipeline
            .cmd("ZREMRANGEBYSCORE")
            .arg(&key)
            .arg(format!("({}", now.saturating_add(now - gone)))
            .arg("+inf")
            .ignore();
        pipeline.cmd("PEXPIRE").arg(&key).arg(max_silence.as_millis().to_string()).ignore();
        pipeline.cmd("ZRANGE").arg(&key).arg(0).arg(-1);
        let mut connection = self.redis().pooled_connection().await?;
        let (members,): (Vec<String>,) = pipeline.query_async(&mut connection).await?;
        Ok(SubscriptionWorkers(members.into_iter().filter_map(|member| member.parse().ok()).collect()))
    }

    /// Removes a worker.
    ///
    /// # Errors
    /// Redis is unavailable: it stays listed until its silence counts.
    pub async fn unregister_worker(&self, subscription: &Subscription, worker: &WorkerId) -> StoreResult<()> {
        let mut command = redis::cmd("ZREM");
        command.arg(keys::subscription_workers(&subscription.name)).arg(worker.as_str());
        let _: i64 = command.query_async(&mut self.redis().clone()).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(names: &[&str]) -> SubscriptionWorkers {
        SubscriptionWorkers(names.iter().map(|name| name.parse().expect("a name")).collect())
    }

    #[test]
    fn each_channel_is_one_members_and_stays_when_others_go() {
        let channels: Vec<ChannelName> = (0..300).map(|n| format!("c{n}").parse().expect("a name")).collect();
        let (three, two) = (members(&["a", "b", "c"]), members(&["a", "b"]));
        let mut of_each = [0; 3];
        for channel in &channels {
            let preferred: Vec<usize> = (0..3).filter(|n| three.is_preferred(&three.0[*n], channel)).collect();
            assert_eq!(preferred.len(), 1);
            of_each[preferred[0]] += 1;
            if preferred[0] < 2 {
                assert!(two.is_preferred(&two.0[preferred[0]], channel), "it stays where it is");
            }
        }
        assert!(of_each.iter().all(|count| *count > 50), "{of_each:?}");
        assert!(
            SubscriptionWorkers::default().is_preferred(&"a".parse().expect("a name"), &channels[0]),
            "nobody else is known"
        );
    }
}
