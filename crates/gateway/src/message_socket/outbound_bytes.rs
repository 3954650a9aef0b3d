//! How many bytes are on their way to a client. The library has room for a number of frames, however long they are, and takes all of
//! them at once; a client that takes nothing must not have that many messages of a mebibyte gathered for it.

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

/// Bytes that may be on their way before the next message; one may be longer.
const MAX_PENDING_BYTES: usize = 64 << 10;

/// Counts them. Clone it freely.
#[derive(Clone, Default)]
pub(crate) struct OutboundBytes(Arc<OutboundState>);

#[derive(Default)]
struct OutboundState {
    pending_bytes: AtomicUsize,
    drained: Notify,
}

impl OutboundBytes {
    /// Waits until there is room for a message, and counts it.
    pub(super) async fn reserve(&self, bytes: usize) {
        loop {
            let taken = self.0.drained.notified();
            if self.0.pending_bytes.load(SeqCst) < MAX_PENDING_BYTES {
                self.0.pending_bytes.fetch_add(bytes, SeqCst);
                return;
            }
            taken.await;
        }
    }

    /// So many have gone on to the client, with those that make frames of messages.
    fn mark_sent(&self, bytes: usize) {
        let left = |now: usize| Some(now.saturating_sub(bytes));
        let _ = self.0.pending_bytes.fetch_update(SeqCst, SeqCst, left);
        self.0.drained.notify_waiters();
    }

    /// The body that they leave through.
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
    /// Nothing leaves any more; whoever waits finds out that it is closed.
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
