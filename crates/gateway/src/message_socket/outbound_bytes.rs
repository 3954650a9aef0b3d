//! Limits the bytes that wait to be sent to a client, and to all clients together. The WebSocket library limits the number
//! of frames, not their length, and copies each: clients that read nothing could make it buffer that many messages of a
//! mebibyte.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
};

use actix_web::{
    body::{BodySize, BoxBody, MessageBody},
    web::Bytes,
};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// The most bytes that may wait when the next message is added. A single message may be longer.
const MAX_PENDING_BYTES: usize = 64 << 10;
/// Longer messages count for all clients together. Shorter ones are bounded by the number of clients.
const MIN_SHARED_BYTES: usize = 16 << 10;
/// Bytes that go to the connection at a time, which copies them.
const PIECE_BYTES: usize = 16 << 10;

/// Memory for the long messages that wait to be sent over all `WebSocket` connections of the process.
#[derive(Clone)]
pub(crate) struct SharedOutbound {
    room: Arc<Semaphore>,
    max_bytes: usize,
}

impl SharedOutbound {
    pub(crate) fn new(max_bytes: usize) -> Self {
        let max_bytes = max_bytes.min(Semaphore::MAX_PERMITS);
        Self { room: Arc::new(Semaphore::new(max_bytes)), max_bytes }
    }

    /// Waits for room. One message may be longer than all of it.
    async fn reserve(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let bytes = u32::try_from(bytes.min(self.max_bytes)).unwrap_or(u32::MAX);
        self.room.clone().acquire_many_owned(bytes).await.ok()
    }
}

/// Counts the bytes that wait. Clones share the count.
#[derive(Clone)]
pub(crate) struct OutboundBytes(Arc<OutboundState>);

struct OutboundState {
    pending_bytes: AtomicUsize,
    drained: Notify,
    shared: SharedOutbound,
    /// The room that the long messages among those pending have.
    room: Mutex<Option<OwnedSemaphorePermit>>,
}

impl OutboundBytes {
    pub(crate) fn new(shared: SharedOutbound) -> Self {
        Self(Arc::new(OutboundState {
            pending_bytes: AtomicUsize::new(0),
            drained: Notify::new(),
            shared,
            room: Mutex::default(),
        }))
    }

    /// Waits until there is room for a message, then counts it.
    pub(super) async fn reserve(&self, bytes: usize) {
        loop {
            let drained = self.0.drained.notified();
            if self.0.pending_bytes.load(SeqCst) < MAX_PENDING_BYTES {
                break;
            }
            drained.await;
        }
        self.0.pending_bytes.fetch_add(bytes, SeqCst);
    }

    /// Waits until all clients together leave room for a long message. It comes, because a client that takes nothing is
    /// cut off. Call it before the message is copied.
    pub(super) async fn reserve_shared(&self, bytes: usize) {
        if bytes >= MIN_SHARED_BYTES {
            self.keep_room(self.0.shared.reserve(bytes).await);
        }
    }

    fn keep_room(&self, more: Option<OwnedSemaphorePermit>) {
        let mut room = self.0.room.lock().unwrap_or_else(PoisonError::into_inner);
        match (room.as_mut(), more) {
            (Some(room), Some(more)) => room.merge(more),
            (None, more) => *room = more,
            (Some(_), None) => {}
        }
    }

    /// Subtracts bytes that were sent to the client, frame headers included.
    fn mark_sent(&self, bytes: usize) {
        let left = |now: usize| Some(now.saturating_sub(bytes));
        let before = self.0.pending_bytes.fetch_update(SeqCst, SeqCst, left).unwrap_or_default();
        if before.saturating_sub(bytes) < MAX_PENDING_BYTES {
            // The long ones are gone, for the most part
            self.0.room.lock().unwrap_or_else(PoisonError::into_inner).take();
        }
        self.0.drained.notify_waiters();
    }

    /// The response body, which counts the bytes that leave.
    pub(crate) fn wrap_body(&self, body: BoxBody) -> impl MessageBody + use<> {
        OutboundBody { body, outbound: self.clone(), unsent: Bytes::new() }
    }
}

struct OutboundBody {
    body: BoxBody,
    outbound: OutboundBytes,
    unsent: Bytes,
}

impl MessageBody for OutboundBody {
    type Error = <BoxBody as MessageBody>::Error;

    fn size(&self) -> BodySize {
        self.body.size()
    }

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Self::Error>>> {
        if self.unsent.is_empty() {
            match std::task::ready!(Pin::new(&mut self.body).poll_next(cx)) {
                Some(Ok(bytes)) => self.unsent = bytes,
                other => return Poll::Ready(other),
            }
        }
        let length = self.unsent.len().min(PIECE_BYTES);
        self.outbound.mark_sent(length);
        Poll::Ready(Some(Ok(self.unsent.split_to(length))))
    }
}

impl Drop for OutboundBody {
    /// The connection has ended: a task that waits for room learns that it is closed.
    fn drop(&mut self) {
        self.outbound.mark_sent(usize::MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn there_is_room_for_the_next_message_when_enough_of_those_before_has_gone() {
        let outbox = OutboundBytes::new(SharedOutbound::new(20 * MAX_PENDING_BYTES));
        outbox.reserve(MAX_PENDING_BYTES - 1).await;
        outbox.reserve(10 * MAX_PENDING_BYTES).await;
        let waiting = tokio::spawn({
            let outbox = outbox.clone();
            async move { outbox.reserve(1).await }
        });
        tokio::task::yield_now().await;
        outbox.mark_sent(10 * MAX_PENDING_BYTES - 1);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        outbox.mark_sent(1);
        waiting.await.expect("it had room");
        drop(outbox.wrap_body(BoxBody::new("x")));
        outbox.reserve(1).await;
    }

    #[tokio::test]
    async fn long_messages_of_clients_that_take_nothing_leave_no_room_for_more_and_short_ones_go_on() {
        let shared = SharedOutbound::new(1 << 20);
        let (stalled, other) = (OutboundBytes::new(shared.clone()), OutboundBytes::new(shared));
        // More than there is: it is alone
        stalled.reserve_shared(2 << 20).await;
        other.reserve_shared(MIN_SHARED_BYTES - 1).await;
        let waiting = tokio::spawn({
            let other = other.clone();
            async move { other.reserve_shared(MIN_SHARED_BYTES).await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(stalled.wrap_body(BoxBody::new("x")));
        waiting.await.expect("it had room");
    }
}
