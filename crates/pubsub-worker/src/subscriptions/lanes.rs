//! Channels side by side, each by one task at a time: for deliveries that keep the order of a channel.

use std::{
    collections::{BTreeSet, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use common::{
    name::ChannelName,
    redis::{StoreResult, next_delay, note_interruption, reconnect_delays},
};
use tokio::{task::JoinSet, time::Instant};

use super::{bell::Door, runner::Runner};

/// When a channel is to be looked at again, besides whenever it rings.
pub(super) type Again = Option<Duration>;

/// Works on channels until the runner is stopped, each with `work`, then waits for what is under way.
pub(super) async fn run<F, Fut>(runner: &Arc<Runner>, door: &Door, work: F)
where
    F: Fn(ChannelName) -> Fut,
    Fut: Future<Output = Again> + Send + 'static,
{
    let mut lanes = Lanes::default();
    let mut tasks: JoinSet<(ChannelName, Again)> = JoinSet::new();
    let mut find = Some(Duration::ZERO);
    let mut known = BTreeSet::new();
    let mut delays = reconnect_delays();
    loop {
        let next = lanes.next_due();
        let (has_ready, stop) = (!lanes.ready.is_empty(), &runner.stop);
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(ended) = tasks.join_next() => match ended {
                Ok((channel, again)) => lanes.ended(channel, again),
                Err(error) => tracing::error!(%error, "delivering a channel failed"),
            },
            ring = door.rung() => {
                for channel in ring.channels {
                    door.listen_to(&channel);
                    known.insert(channel.clone());
                    lanes.ring(channel);
                }
                if ring.everywhere {
                    find = Some(Duration::ZERO);
                }
            }
            () = after(find) => match channels(runner).await {
                Ok(channels) => {
                    (find, delays) = (None, reconnect_delays());
                    let before = std::mem::replace(&mut known, channels.iter().cloned().collect());
                    before.difference(&known).for_each(|gone| door.forget(gone));
                    for channel in channels {
                        door.listen_to(&channel);
                        lanes.ring(channel);
                    }
                }
                Err(error) => {
                    note_interruption("looking for channels", &error);
                    find = Some(next_delay(&mut delays));
                }
            },
            () = until(next) => lanes.make_due_ready(),
            Some(place) = runner.places(1), if has_ready => if let Some(channel) = lanes.start() {
                let working = work(channel.clone());
                tasks.spawn(async move {
                    let again = working.await;
                    drop(place);
                    (channel, again)
                });
            },
        }
    }
    while tasks.join_next().await.is_some() {}
}

async fn channels(runner: &Runner) -> StoreResult<Vec<ChannelName>> {
    let _look = runner.look().await;
    runner.store().channels_of(&runner.subscription).await
}

async fn after(delay: Option<Duration>) {
    match delay {
        Some(delay) => tokio::time::sleep(delay).await,
        None => std::future::pending().await,
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Channels that wait for their turn, each once.
#[derive(Default)]
pub(super) struct Line {
    first_to_last: VecDeque<ChannelName>,
    all: HashSet<ChannelName>,
}

impl Line {
    pub(super) fn push(&mut self, channel: ChannelName) {
        if self.all.insert(channel.clone()) {
            self.first_to_last.push_back(channel);
        }
    }

    pub(super) fn pop(&mut self) -> Option<ChannelName> {
        let channel = self.first_to_last.pop_front()?;
        self.all.remove(&channel);
        Some(channel)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.first_to_last.is_empty()
    }
}

#[derive(Default)]
struct Lanes {
    ready: Line,
    busy: HashSet<ChannelName>,
    /// They rang while somebody was at them.
    rang: HashSet<ChannelName>,
    due: BTreeSet<(Instant, ChannelName)>,
}

impl Lanes {
    fn ring(&mut self, channel: ChannelName) {
        if self.busy.contains(&channel) {
            self.rang.insert(channel);
        } else {
            self.ready.push(channel);
        }
    }

    fn start(&mut self) -> Option<ChannelName> {
        let channel = self.ready.pop()?;
        self.busy.insert(channel.clone());
        Some(channel)
    }

    fn ended(&mut self, channel: ChannelName, again: Again) {
        self.busy.remove(&channel);
        match again {
            Some(delay) if !delay.is_zero() => {
                self.rang.remove(&channel);
                self.due.insert((Instant::now() + delay, channel));
            }
            Some(_) => self.ring(channel),
            None if self.rang.remove(&channel) => self.ring(channel),
            None => {}
        }
    }

    fn next_due(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    fn make_due_ready(&mut self) {
        let now = Instant::now();
        while let Some((at, channel)) = self.due.pop_first() {
            if at > now {
                self.due.insert((at, channel));
                return;
            }
            self.ring(channel);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_channel_is_one_tasks_at_a_time_and_no_ring_is_lost() {
        let channel: ChannelName = "c".parse().expect("a name");
        let mut lanes = Lanes::default();
        lanes.ring(channel.clone());
        lanes.ring(channel.clone());
        assert_eq!(lanes.start(), Some(channel.clone()));
        assert_eq!(lanes.start(), None, "once");
        lanes.ring(channel.clone());
        assert_eq!(lanes.start(), None, "somebody is at it");
        lanes.ended(channel.clone(), None);
        assert_eq!(lanes.start(), Some(channel.clone()), "it rang meanwhile");
        lanes.ended(channel.clone(), Some(Duration::from_secs(5)));
        assert_eq!(lanes.start(), None, "it is not due");
        tokio::time::sleep(Duration::from_secs(6)).await;
        lanes.make_due_ready();
        assert_eq!(lanes.start(), Some(channel.clone()));
        lanes.ended(channel, None);
        assert_eq!((lanes.start(), lanes.next_due()), (None, None));
    }
}
