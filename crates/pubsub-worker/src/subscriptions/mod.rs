//! Durable subscriptions: which there are, and a runner for each that is active.
//!
//! | file | what it does |
//! |---|---|
//! | `mod` | starts and stops runners as the list of subscriptions changes, and puts it back when Redis lost it |
//! | `message_notifier` | hears where there may be something new |
//! | `runner` | what all ways to deliver share: places, attempts, what follows a failure |
//! | `shared` | one worker gets a message |
//! | `ordered` | one worker has a channel |
//! | `broadcast` | every worker gets a message |
//! | `channel_tasks` | channels side by side, each by one task at a time |
//! | `retries` | what failed before |

mod broadcast;
mod channel_tasks;
mod message_notifier;
mod ordered;
mod retries;
mod runner;
mod shared;

use std::{collections::HashMap, sync::Arc, time::Duration};

use common::{json::ObjectWriter, name::SubscriptionName};
use model::subscription::{Mode, Ordering, State, Subscription};
use store::{StoreResult, next_delay, note_interruption, reconnect_delays};
use tokio::task::JoinHandle;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub(crate) use message_notifier::Bell;
use runner::Runner;
pub(crate) use runner::{LOOKS_AT_ONCE, Process, ROOM_KIB};

/// Changes can be missed: the list is looked at again this often.
const LOOK_EVERY: Duration = Duration::from_secs(15);
/// How often it is tried to sweep up after a subscription that was removed, with pauses of up to a second.
const SWEEPS: usize = 60;
/// After the grace: time for what is under way to be given back.
const LAST_WORDS: Duration = Duration::from_secs(20);

/// Delivers subscriptions until `stop` is cancelled, then finishes what is under way or gives it back.
pub(crate) async fn run(process: Arc<Process>, grace: Duration, stop: CancellationToken) {
    let mut subscriptions =
        Running { process: process.clone(), runners: HashMap::new(), known: Vec::new(), leaving: TaskTracker::new() };
    let mut delays = reconnect_delays();
    tokio::spawn(process.bell.clone().sweep(stop.clone()));
    while !stop.is_cancelled() {
        let wait = match subscriptions.look().await {
            Ok(()) => {
                delays = reconnect_delays();
                LOOK_EVERY
            }
            Err(error) => {
                note_interruption("looking for subscriptions", &error);
                next_delay(&mut delays)
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = process.bell.list_changed() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
    let ending = subscriptions.stop();
    tokio::pin!(ending);
    if tokio::time::timeout(grace, &mut ending).await.is_err() {
        tracing::warn!("the grace is over, messages are given back");
        process.abandon.cancel();
        if tokio::time::timeout(LAST_WORDS, ending).await.is_err() {
            tracing::error!("messages could not be given back in time: they wait for their deadline");
        }
    }
}

struct Running {
    process: Arc<Process>,
    runners: HashMap<SubscriptionName, One>,
    /// What the list had when it was last seen.
    known: Vec<(Subscription, String)>,
    /// Runners of subscriptions that were removed.
    leaving: TaskTracker,
}

/// A runner, and the subscription that it was made for.
struct One {
    subscription: Subscription,
    stored: String,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    /// Starts and stops runners so that there is one for each subscription that is active.
    async fn look(&mut self) -> StoreResult<()> {
        let found = self.process.store.all().await?;
        if found.is_blank && !self.known.is_empty() {
            return self.restore().await;
        }
        self.known = found.subscriptions;
        let known: HashMap<&SubscriptionName, &String> =
            self.known.iter().map(|(subscription, stored)| (&subscription.name, stored)).collect();
        // Paused ones have a runner that does nothing, so that what is under way ends in one place
        for (_, one) in self.runners.extract_if(|name, _| !known.contains_key(name)) {
            one.stop.cancel();
            self.leaving.spawn(sweep_up(self.process.clone(), one));
        }
        for (subscription, stored) in &self.known {
            if self.runners.get(&subscription.name).is_some_and(|one| one.stored == *stored) {
                continue;
            }
            let before = self.runners.remove(&subscription.name).map(|one| {
                one.stop.cancel();
                one.task
            });
            let stop = CancellationToken::new();
            let task = tokio::spawn(run_one(self.process.clone(), subscription.clone(), stop.clone(), before));
            let one = One { subscription: subscription.clone(), stored: stored.clone(), stop, task };
            self.runners.insert(subscription.name.clone(), one);
        }
        Ok(())
    }

    /// Redis has lost the list: what this process knows of it is put back, unless another one was faster.
    async fn restore(&mut self) -> StoreResult<()> {
        if self.process.store.restore(&self.known).await? {
            let names: Vec<&str> = self.known.iter().map(|(subscription, _)| subscription.name.as_str()).collect();
            tracing::error!(?names, "redis had lost all subscriptions: they were put back");
            for (subscription, _) in &self.known {
                let name = subscription.name.to_string();
                metrics::counter!("galley_subscriptions_restored_total", "subscription" => name).increment(1);
                self.process.store.record(&subscription.name, "subscription.restored", |_: &mut ObjectWriter| {});
            }
        }
        Ok(())
    }

    async fn stop(self) {
        for one in self.runners.values() {
            one.stop.cancel();
        }
        for one in self.runners.into_values() {
            if let Err(error) = one.task.await {
                tracing::error!(%error, "a subscription failed");
            }
        }
        self.leaving.close();
        self.leaving.wait().await;
    }
}

/// Removes what a runner wrote of a subscription after that was removed: the last who served it leaves nothing.
async fn sweep_up(process: Arc<Process>, one: One) {
    let name = &one.subscription.name;
    if let Err(error) = one.task.await {
        tracing::error!(subscription = %name, %error, "a subscription failed");
    }
    let mut delays = reconnect_delays();
    for _ in 0..SWEEPS {
        match process.store.sweep_up(&one.subscription).await {
            Ok(_) => return,
            Err(error) => note_interruption("sweeping up after a subscription", &error),
        }
        let pause = tokio::time::sleep(next_delay(&mut delays));
        if process.abandon.run_until_cancelled(pause).await.is_none() {
            return;
        }
    }
}

/// Delivers one subscription until it is stopped; begins when the runner before it has ended.
async fn run_one(
    process: Arc<Process>,
    subscription: Subscription,
    stop: CancellationToken,
    before: Option<JoinHandle<()>>,
) {
    if let Some(before) = before
        && let Err(error) = before.await
    {
        tracing::error!(subscription = %subscription.name, %error, "a subscription failed");
    }
    if subscription.state != State::Active {
        return;
    }
    let subscription = Arc::new(subscription);
    let runner = match Runner::new(&process, subscription.clone(), stop) {
        Ok(runner) => Arc::new(runner),
        Err(problem) => {
            tracing::error!(subscription = %subscription.name, problem, "a subscription cannot be delivered here");
            return;
        }
    };
    tracing::info!(subscription = %subscription.name, "subscription served");
    let door = process.bell.door(&subscription.channels);
    let delivering = async {
        match (subscription.mode, subscription.ordering) {
            (Mode::Shared, Ordering::None) => shared::run(runner.clone(), door).await,
            (Mode::Shared, Ordering::Channel) => ordered::run(runner.clone(), door).await,
            (Mode::Broadcast, _) => broadcast::run(runner.clone(), door).await,
        }
    };
    tokio::join!(delivering, retries::run(runner.clone()));
}
