//! Durable subscriptions: follows their list and runs one runner for each active one.
//!
//! | file | what it does |
//! |---|---|
//! | `mod` | starts and stops runners as the list changes; restores the list when Redis lost it |
//! | `message_notifier` | notifies runners of new messages |
//! | `runner` | shared by all delivery modes: slots, attempts, what follows a failure |
//! | `shared` | each message to one worker |
//! | `ordered` | each channel to one worker, in order |
//! | `broadcast` | every message to every worker |
//! | `channel_tasks` | many channels side by side, one task for each |
//! | `retries` | redelivers failed messages |

mod broadcast;
mod channel_tasks;
mod delivery_span;
mod message_notifier;
mod ordered;
mod retries;
mod runner;
mod shared;

use std::{collections::HashMap, sync::Arc, time::Duration};

use common::{json::ObjectWriter, name::SubscriptionName, shutdown::StopSignals};
use model::subscription::{DeliveryMode, DeliveryOrdering, Subscription, SubscriptionState};
use store::{StoreResult, log_interruption, next_reconnect_delay, reconnect_delays};
use tokio::task::JoinHandle;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub(crate) use message_notifier::MessageNotifier;
use runner::SubscriptionRunner;
pub(crate) use runner::{MAX_CONCURRENT_REDIS_READS, MEMORY_BUDGET_KIB, PubsubProcess};

/// How often the list is read again, because notifications may be missed.
const LIST_INTERVAL: Duration = Duration::from_secs(15);
/// Attempts to clean up after a removed subscription, with pauses of up to a second.
const MAX_CLEANUP_ATTEMPTS: usize = 60;
/// After the shutdown grace: time to release the messages in flight, besides what programs need to stop.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(20);

/// Delivers subscriptions until a signal to stop, then finishes or releases the messages in flight.
pub(crate) async fn run(process: Arc<PubsubProcess>, grace: Duration, signals: StopSignals) {
    let StopSignals { stop, end_grace } = signals;
    let mut subscriptions = SubscriptionSupervisor {
        process: process.clone(),
        runners: HashMap::new(),
        last_list: Vec::new(),
        cleanups: TaskTracker::new(),
    };
    let mut delays = reconnect_delays();
    tokio::spawn(process.notifier.clone().sweep(stop.clone()));
    tokio::spawn(process.store.clone().write_counts_regularly(stop.clone()));
    while !stop.is_cancelled() {
        let wait = match subscriptions.reconcile().await {
            Ok(()) => {
                delays = reconnect_delays();
                LIST_INTERVAL
            }
            Err(error) => {
                log_interruption("looking for subscriptions", &error);
                next_reconnect_delay(&mut delays)
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = process.notifier.wait_for_list_change() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
    let ending = subscriptions.stop_all();
    tokio::pin!(ending);
    let in_time = tokio::time::timeout(grace, end_grace.run_until_cancelled(&mut ending)).await;
    if !matches!(in_time, Ok(Some(()))) {
        tracing::warn!("the shutdown grace is over, releasing messages");
        process.hard_shutdown.cancel();
        let release_timeout = process.delivery_context.commands.current().max_stop_duration() + DRAIN_TIMEOUT;
        if tokio::time::timeout(release_timeout, ending).await.is_err() {
            tracing::error!("messages could not be released in time: they wait for their deadline");
        }
    }
    if let Err(error) = process.store.write_counts().await {
        log_interruption("counting delivered messages", &error);
    }
}

struct SubscriptionSupervisor {
    process: Arc<PubsubProcess>,
    runners: HashMap<SubscriptionName, SubscriptionTask>,
    /// The list when it was last read.
    last_list: Vec<(Subscription, String)>,
    /// Clean-ups after removed subscriptions.
    cleanups: TaskTracker,
}

/// A runner and the subscription that it delivers.
struct SubscriptionTask {
    subscription: Subscription,
    raw: String,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl SubscriptionSupervisor {
    /// Starts and stops runners until there is one for each active subscription.
    async fn reconcile(&mut self) -> StoreResult<()> {
        let found = self.process.store.list().await?;
        if found.is_missing && !self.last_list.is_empty() {
            return self.restore().await;
        }
        self.last_list = found.subscriptions;
        let known: HashMap<&SubscriptionName, &String> =
            self.last_list.iter().map(|(subscription, stored)| (&subscription.name, stored)).collect();
        // A paused subscription has an idle runner, so that messages in flight end in one place
        for (_, one) in self.runners.extract_if(|name, _| !known.contains_key(name)) {
            one.stop.cancel();
            self.cleanups.spawn(clean_up_deleted(self.process.clone(), one));
        }
        for (subscription, stored) in &self.last_list {
            if self.runners.get(&subscription.name).is_some_and(|one| one.raw == *stored) {
                continue;
            }
            let before = self.runners.remove(&subscription.name).map(|one| {
                one.stop.cancel();
                one.task
            });
            let stop = CancellationToken::new();
            let task = tokio::spawn(run_subscription(self.process.clone(), subscription.clone(), stop.clone(), before));
            let one = SubscriptionTask { subscription: subscription.clone(), raw: stored.clone(), stop, task };
            self.runners.insert(subscription.name.clone(), one);
        }
        Ok(())
    }

    /// Redis lost the list: restores what this process knows, unless another process was faster.
    async fn restore(&mut self) -> StoreResult<()> {
        if self.process.store.restore(&self.last_list).await? {
            let names: Vec<&str> = self.last_list.iter().map(|(subscription, _)| subscription.name.as_str()).collect();
            tracing::error!(
                event = "subscription.restored",
                ?names,
                "redis had lost all subscriptions: they were put back"
            );
            for (subscription, _) in &self.last_list {
                let name = subscription.name.to_string();
                metrics::counter!("galley_subscriptions_restored_total", "subscription" => name).increment(1);
                self.process.store.record_event(&subscription.name, "subscription.restored", |_: &mut ObjectWriter| {});
            }
        }
        Ok(())
    }

    async fn stop_all(self) {
        for one in self.runners.values() {
            one.stop.cancel();
        }
        for one in self.runners.into_values() {
            if let Err(error) = one.task.await {
                tracing::error!(%error, "a subscription failed");
            }
        }
        self.cleanups.close();
        self.cleanups.wait().await;
    }
}

/// Deletes what a runner wrote after its subscription was removed: the last worker leaves nothing behind.
async fn clean_up_deleted(process: Arc<PubsubProcess>, one: SubscriptionTask) {
    let name = &one.subscription.name;
    if let Err(error) = one.task.await {
        tracing::error!(subscription = %name, %error, "a subscription failed");
    }
    let mut delays = reconnect_delays();
    for _ in 0..MAX_CLEANUP_ATTEMPTS {
        match process.store.clear_if_deleted(&one.subscription).await {
            Ok(_) => return,
            Err(error) => log_interruption("sweeping up after a subscription", &error),
        }
        let pause = tokio::time::sleep(next_reconnect_delay(&mut delays));
        if process.hard_shutdown.run_until_cancelled(pause).await.is_none() {
            return;
        }
    }
}

/// Delivers one subscription until it is stopped. Starts when the previous runner has ended.
async fn run_subscription(
    process: Arc<PubsubProcess>,
    subscription: Subscription,
    stop: CancellationToken,
    before: Option<JoinHandle<()>>,
) {
    if let Some(before) = before
        && let Err(error) = before.await
    {
        tracing::error!(subscription = %subscription.name, %error, "a subscription failed");
    }
    if subscription.state != SubscriptionState::Active {
        return;
    }
    let subscription = Arc::new(subscription);
    let runner = match SubscriptionRunner::new(&process, subscription.clone(), stop) {
        Ok(runner) => Arc::new(runner),
        Err(problem) => {
            tracing::error!(subscription = %subscription.name, problem, "a subscription cannot be delivered here");
            return;
        }
    };
    tracing::info!(event = "subscription.served", subscription = %subscription.name, "subscription served");
    let door = process.notifier.add_listener(&subscription.channels);
    let delivering = async {
        match (subscription.mode, subscription.ordering) {
            (DeliveryMode::Shared, DeliveryOrdering::None) => shared::run(runner.clone(), door).await,
            (DeliveryMode::Shared, DeliveryOrdering::Channel) => ordered::run(runner.clone(), door).await,
            (DeliveryMode::Broadcast, _) => broadcast::run(runner.clone(), door).await,
        }
    };
    tokio::join!(delivering, retries::run(runner.clone()));
}
