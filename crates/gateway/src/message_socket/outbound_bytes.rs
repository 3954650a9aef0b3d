//! Limits the bytes that wait to be sent to a client. The WebSocket library limits the number of frames, not their
//! length: a client that reads nothing could make it buffer that many messages of a mebibyte.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
};

use actix_web::{
    body::{BodySize, BoxBody, MessageBody},
    web::Bytes,
};
use tokio::sync::Notify;

/// The most bytes that may wait when the next message is added. A single message may be longer.
const MAX_PENDING_BYTES: usize = 64 << 10;

/// Counts the bytes that wait. Clones share the count.
#[derive(Clone, Default)]
pub(crate) struct OutboundBytes(Arc<OutboundState>);

#[derive(Default)]
struct OutboundState {
    pending_bytes: AtomicUsize,
    drained: Notify,
}

impl OutboundBytes {
    /// Waits until there is room for a message, then counts it.
    pub(super) async fn reserve(&self, bytes: usize) {
        loop {
            let drained = self.0.drained.notified();
            if self.0.pending_bytes.load(SeqCst) < MAX_PENDING_BYTES {
                self.0.pending_bytes.fetch_add(bytes, SeqCst);
                return;
            }
            drained.await;
        }
    }

    /// Subtracts bytes that were sent to the client, frame headers included.
    fn mark_sent(&self, bytes: usize) {
        let left = |now: usize| Some(now.saturating_sub(bytes));
        let _ = self.0.pending_bytes.fetch_update(SeqCst, SeqCst, left);
        self.0.drained.notify_waiters();
    }

    /// The response body, which counts the bytes that leave.
    pub(crate) fn wrap_body(&self, body: BoxBody) -> impl MessageBody + use<> {
        OutboundBody { body, outbound: self.clone() }
    }
}

struct OutboundBody {
    body: BoxBody,
    outbound: OutboundBytes,
}

impl MessageBody for OutboundBody {
    type Error = <BoxBody as MessageBody>::Error;

    fn size(&self) -> BodySize {
        self.body.size()
    }

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Self::Error>>> {
        let next = Pin::new(&mut self.body).poll_next(cx);
        if let Poll::Ready(Some(Ok(bytes))) = &next {
            self.outbound.mark_sent(bytes.len());
        }
        next
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
        let outbox = OutboundBytes::default();
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
}
