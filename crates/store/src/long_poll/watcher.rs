//! The task that watches the streams of all queues that somebody waits for: one blocking read that takes nothing.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Hall;
use crate::{
    StoreResult,
    connection::{
        dedicated::Dedicated,
        notification::Wake,
        notifier::{Heard, Inbox},
    },
    jobs::Jobs,
    long_poll::new_entries::Watched,
    next_delay, note_interruption, reconnect_delays,
};
use common::name::QueueName;

/// Longest blocking read. It ends by itself so that a connection that died silently is found out; then everything is
/// looked up anew, because wake-up calls can be lost.
const LONGEST_BLOCK: Duration = Duration::from_secs(5);
/// Pause between two tries to end a read that may not have reached Redis yet.
const TRY_AGAIN: Duration = Duration::from_millis(2);

/// Hears of new streams and of queues that go on, until `stop` is cancelled.
pub(crate) async fn listen(hall: Arc<Hall>, mut heard: Inbox, stop: CancellationToken) {
    loop {
        let heard = tokio::select! {
            () = stop.cancelled() => return,
            heard = heard.recv() => heard,
        };
        match heard {
            Some(Heard::Message { payload, .. }) => {
                if let Some(Wake::Stream(queue)) = Wake::decode(&payload) {
                    hall.change(|lines| lines.changed(&queue));
                }
            }
            // Calls may have been missed
            Some(Heard::Subscribed(_)) => hall.change(super::Lines::all_changed),
            Some(Heard::Lost) => {}
            None => return,
        }
    }
}

/// Watches until `stop` is cancelled.
pub(crate) async fn run(hall: Arc<Hall>, jobs: Jobs, stop: CancellationToken) {
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
                hall.change(super::Lines::all_changed);
                note_interruption("waiting for jobs to arrive", &error);
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(next_delay(&mut delays)) => {}
                }
            }
        }
    }
}

/// Looks up what has to be, waits until something arrives or changes, and calls those whose turn it is.
async fn watch_once(hall: &Hall, jobs: &Jobs, connection: &mut Option<Dedicated>) -> StoreResult<()> {
    let now = Instant::now();
    let (next, asked) = {
        let mut lines = hall.lines();
        (lines.release(now), lines.ask())
    };
    if !asked.is_empty() {
        let streams = jobs.to_watch(&asked).await?;
        hall.lines().set(&asked, streams);
    }
    let block = next.map_or(LONGEST_BLOCK, |next| LONGEST_BLOCK.min(next - now)).max(Duration::from_millis(1));
    let streams = hall.lines().watched();
    if streams.is_empty() {
        if hall.lines().queues() == 0 {
            hall.stirred.notified().await;
        } else if tokio::time::timeout(block, hall.stirred.notified()).await.is_err() && block == LONGEST_BLOCK {
            hall.lines().all_changed();
        }
        return Ok(());
    }
    let connection = match connection {
        Some(connection) => connection,
        None => connection.insert(jobs.redis().dedicated(LONGEST_BLOCK).await?),
    };
    match arrivals(hall, jobs, connection, &streams, block).await? {
        Read::Arrived(queues) => {
            let mut lines = hall.lines();
            for queue in &queues {
                lines.arrived(queue);
            }
        }
        Read::Silence if block == LONGEST_BLOCK => hall.lines().all_changed(),
        Read::Silence | Read::Interrupted => {}
    }
    Ok(())
}

enum Read {
    Arrived(Vec<QueueName>),
    Silence,
    /// What to watch has changed.
    Interrupted,
}

async fn arrivals(
    hall: &Hall,
    jobs: &Jobs,
    connection: &mut Dedicated,
    streams: &[Watched],
    block: Duration,
) -> StoreResult<Read> {
    let client_id = connection.client_id();
    let read = jobs.arrivals(connection, streams, block);
    tokio::pin!(read);
    let (queues, is_silence) = tokio::select! {
        queues = &mut read => (queues?, true),
        () = hall.stirred.notified() => {
            let queues = tokio::select! {
                queues = &mut read => queues?,
                () = end(jobs, client_id) => read.await?,
            };
            (queues, false)
        }
    };
    Ok(match (queues.is_empty(), is_silence) {
        (false, _) => Read::Arrived(queues),
        (true, true) => Read::Silence,
        (true, false) => Read::Interrupted,
    })
}

/// Ends a blocked read. If Redis cannot be told, the read has an end of its own.
async fn end(jobs: &Jobs, client_id: i64) {
    let mut redis = jobs.redis().clone();
    while matches!(redis.unblock(client_id).await, Ok(false)) {
        tokio::time::sleep(TRY_AGAIN).await;
    }
}
