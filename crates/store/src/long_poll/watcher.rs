//! The task that watches the streams of all queues with waiters: one blocking read that claims nothing.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::LongPollShared;
use crate::{
    StoreResult,
    connection::{
        dedicated::DedicatedConnection,
        hint_pace::PacedHints,
        notification::Notification,
        notifier::{EventReceiver, SubscriberEvent},
    },
    jobs::Jobs,
    log_interruption,
    long_poll::new_entries::WatchedStream,
    next_reconnect_delay, reconnect_delays,
};
use common::name::QueueName;

/// Longest blocking read. It ends regularly so that a dead connection is noticed; then a few queues in turn are looked up
/// again, because notifications can be lost.
const MAX_BLOCK: Duration = Duration::from_secs(5);
/// How often notifications may cause a look at Redis.
const HINT_INTERVAL: Duration = Duration::from_millis(20);
const HINT_BURST: u32 = 50;

/// Receives notifications of new streams and resumed queues until `stop` is cancelled.
pub(crate) async fn listen_for_changes(
    shared: Arc<LongPollShared>,
    mut notifications: EventReceiver,
    stop: CancellationToken,
) {
    let mut hints = PacedHints::new(HINT_BURST, HINT_INTERVAL);
    loop {
        let event = tokio::select! {
            () = stop.cancelled() => return,
            queues = hints.ready(usize::MAX) => {
                shared.update(|wait_queue| queues.iter().for_each(|queue| wait_queue.queue_changed(queue)));
                continue;
            }
            event = notifications.recv() => event,
        };
        match event {
            Some(SubscriberEvent::Message { payload, .. }) => {
                if let Some(Notification::StreamCreated(queue)) = Notification::decode(&payload)
                    && shared.lock().has_waiters(&queue)
                {
                    hints.add(queue);
                }
            }
            // Notifications may have been missed
            Some(SubscriberEvent::Subscribed(_)) => shared.update(super::WaitQueue::all_queues_changed),
            Some(SubscriberEvent::ConnectionLost) => {}
            None => return,
        }
    }
}

/// Watches until `stop` is cancelled.
pub(crate) async fn run(shared: Arc<LongPollShared>, jobs: Jobs, stop: CancellationToken) {
    let (mut delays, mut connection) = (reconnect_delays(), None);
    loop {
        // A read that claims nothing can be dropped
        let watched = tokio::select! {
            () = stop.cancelled() => return,
            watched = watch_once(&shared, &jobs, &mut connection) => watched,
        };
        match watched {
            Ok(()) => delays = reconnect_delays(),
            Err(error) => {
                connection = None;
                shared.update(super::WaitQueue::all_queues_changed);
                log_interruption("waiting for jobs to arrive", &error);
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(next_reconnect_delay(&mut delays)) => {}
                }
            }
        }
    }
}

/// Looks up streams, waits for an arrival or a change, and wakes waiters.
async fn watch_once(
    shared: &LongPollShared,
    jobs: &Jobs,
    connection: &mut Option<DedicatedConnection>,
) -> StoreResult<()> {
    let now = Instant::now();
    let (next, asked) = {
        let mut wait_queue = shared.lock();
        (wait_queue.resume_paused(now), wait_queue.take_unknown())
    };
    if !asked.is_empty() {
        let streams = jobs.streams_to_watch(&asked).await?;
        shared.lock().set_watched(&asked, streams);
    }
    let block = next.map_or(MAX_BLOCK, |next| MAX_BLOCK.min(next - now)).max(Duration::from_millis(1));
    let streams = shared.lock().watched_streams();
    if streams.is_empty() {
        if shared.lock().queue_count() == 0 {
            shared.changed.notified().await;
        } else if tokio::time::timeout(block, shared.changed.notified()).await.is_err() && block == MAX_BLOCK {
            shared.lock().recheck_some();
        }
        return Ok(());
    }
    let connection = match connection {
        Some(connection) => connection,
        None => connection.insert(jobs.redis().open_dedicated(MAX_BLOCK).await?),
    };
    match wait_for_arrivals(shared, jobs, connection, &streams, block).await? {
        WatchRead::Arrived(queues) => {
            let mut wait_queue = shared.lock();
            for queue in &queues {
                wait_queue.job_arrived(queue);
            }
        }
        WatchRead::TimedOut if block == MAX_BLOCK => shared.lock().recheck_some(),
        WatchRead::TimedOut | WatchRead::Interrupted => {}
    }
    Ok(())
}

enum WatchRead {
    Arrived(Vec<QueueName>),
    TimedOut,
    /// What to watch has changed.
    Interrupted,
}

async fn wait_for_arrivals(
    shared: &LongPollShared,
    jobs: &Jobs,
    connection: &mut DedicatedConnection,
    streams: &[WatchedStream],
    block: Duration,
) -> StoreResult<WatchRead> {
    let ender = connection.ender();
    let read = jobs.wait_for_entries(connection, streams, block);
    let (queues, is_interrupted) = jobs.store.redis.interruptible(ender, read, shared.changed.notified()).await;
    let queues = queues?;
    Ok(match (queues.is_empty(), is_interrupted) {
        (false, _) => WatchRead::Arrived(queues),
        (true, false) => WatchRead::TimedOut,
        (true, true) => WatchRead::Interrupted,
    })
}
