//! The task that watches the streams of all queues that somebody waits for: one blocking read that takes nothing.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::LongPollShared;
use crate::{
    StoreResult,
    connection::{
        dedicated::DedicatedConnection,
        notification::Notification,
        notifier::{EventReceiver, SubscriberEvent},
    },
    jobs::Jobs,
    log_interruption,
    long_poll::new_entries::WatchedStream,
    next_reconnect_delay, reconnect_delays,
};
use common::name::QueueName;

/// Longest blocking read. It ends by itself so that a connection that died silently is found out; then everything is
/// looked up anew, because wake-up calls can be lost.
const MAX_BLOCK: Duration = Duration::from_secs(5);

/// Hears of new streams and of queues that go on, until `stop` is cancelled.
pub(crate) async fn listen_for_changes(hall: Arc<LongPollShared>, mut heard: EventReceiver, stop: CancellationToken) {
    loop {
        let heard = tokio::select! {
            () = stop.cancelled() => return,
            heard = heard.recv() => heard,
        };
        match heard {
            Some(SubscriberEvent::Message { payload, .. }) => {
                if let Some(Notification::StreamCreated(queue)) = Notification::decode(&payload) {
                    hall.update(|lines| lines.queue_changed(&queue));
                }
            }
            // Calls may have been missed
            Some(SubscriberEvent::Subscribed(_)) => hall.update(super::WaitQueue::all_queues_changed),
            Some(SubscriberEvent::ConnectionLost) => {}
            None => return,
        }
    }
}

/// Watches until `stop` is cancelled.
pub(crate) async fn run(hall: Arc<LongPollShared>, jobs: Jobs, stop: CancellationToken) {
    let (mut delays, mut connection) = (reconnect_delays(), None);
    loop {
        // Nothing is lost with a read that takes nothing
        let watched = tokio::select! {
            () = stop.cancelled() => return,
            watched = watch_once(&hall, &jobs, &mut connection) => watched,
        };
        match watched {
            Ok(()) => delays = reconnect_delays(),
            Err(error) => {
                connection = None;
                hall.update(super::WaitQueue::all_queues_changed);
                log_interruption("waiting for jobs to arrive", &error);
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(next_reconnect_delay(&mut delays)) => {}
                }
            }
        }
    }
}

/// Looks up what has to be, waits until something arrives or changes, and calls those whose turn it is.
async fn watch_once(
    hall: &LongPollShared,
    jobs: &Jobs,
    connection: &mut Option<DedicatedConnection>,
) -> StoreResult<()> {
    let now = Instant::now();
    let (next, asked) = {
        let mut lines = hall.lock();
        (lines.resume_paused(now), lines.take_unknown())
    };
    if !asked.is_empty() {
        let streams = jobs.streams_to_watch(&asked).await?;
        hall.lock().set_watched(&asked, streams);
    }
    let block = next.map_or(MAX_BLOCK, |next| MAX_BLOCK.min(next - now)).max(Duration::from_millis(1));
    let streams = hall.lock().watched_streams();
    if streams.is_empty() {
        if hall.lock().queue_count() == 0 {
            hall.changed.notified().await;
        } else if tokio::time::timeout(block, hall.changed.notified()).await.is_err() && block == MAX_BLOCK {
            hall.lock().all_queues_changed();
        }
        return Ok(());
    }
    let connection = match connection {
        Some(connection) => connection,
        None => connection.insert(jobs.redis().open_dedicated(MAX_BLOCK).await?),
    };
    match wait_for_arrivals(hall, jobs, connection, &streams, block).await? {
        WatchRead::Arrived(queues) => {
            let mut lines = hall.lock();
            for queue in &queues {
                lines.job_arrived(queue);
            }
        }
        WatchRead::TimedOut if block == MAX_BLOCK => hall.lock().all_queues_changed(),
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
    hall: &LongPollShared,
    jobs: &Jobs,
    connection: &mut DedicatedConnection,
    streams: &[WatchedStream],
    block: Duration,
) -> StoreResult<WatchRead> {
    let client_id = connection.client_id();
    let read = jobs.wait_for_entries(connection, streams, block);
    let (queues, is_interrupted) = jobs.store.redis.interruptible(client_id, read, hall.changed.notified()).await;
    let queues = queues?;
    Ok(match (queues.is_empty(), is_interrupted) {
        (false, _) => WatchRead::Arrived(queues),
        (true, false) => WatchRead::TimedOut,
        (true, true) => WatchRead::Interrupted,
    })
}
