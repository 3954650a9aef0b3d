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
const MOST_BYTES: usize = 64 << 10;

/// Counts them. Clone it freely.
#[derive(Clone, Default)]
pub(crate) struct Outbox(Arc<Way>);

#[derive(Default)]
struct Way {
    bytes: AtomicUsize,
    taken: Notify,
}

impl Outbox {
    /// Waits until there is room for a message, and counts it.
    pub(super) async fn put(&self, bytes: usize) {
        loop {
            let taken = self.0.taken.notified();
            if self.0.bytes.load(SeqCst) < MOST_BYTES {
                self.0.bytes.fetch_add(bytes, SeqCst);
                return;
            }
            taken.await;
        }
    }

    /// So many have gone on to the client, with those that make frames of messages.
    fn take(&self, bytes: usize) {
        let left = |now: usize| Some(now.saturating_sub(bytes));
        let _ = self.0.bytes.fetch_update(SeqCst, SeqCst, left);
        self.0.taken.notify_waiters();
    }

    /// The body that they leave through.
    pub(crate) fn watch(&self, body: BoxBody) -> impl MessageBody + use<> {
        Watched { body, outbox: self.clone() }
    }
}

struct Watched {
    body: BoxBody,
    outbox: Outbox,
}

impl MessageBody for Watched {
    type Error = <BoxBody as MessageBody>::Error;

    fn size(&self) -> BodySize {
        self.body.size()
    }

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Self::Error>>> {
        let next = Pin::new(&mut self.body).poll_next(cx);
        if let Poll::Ready(Some(Ok(bytes))) = &next {
            self.outbox.take(bytes.len());
        }
        next
    }
}

impl Drop for Watched {
    /// Nothing leaves any more; whoever waits finds out that it is closed.
    fn drop(&mut self) {
        self.outbox.take(usize::MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn there_is_room_for_the_next_message_when_enough_of_those_before_has_gone() {
        let outbox = Outbox::default();
        outbox.put(MOST_BYTES - 1).await;
        outbox.put(10 * MOST_BYTES).await;
        let waiting = tokio::spawn({
            let outbox = outbox.clone();
            async move { outbox.put(1).await }
        });
        tokio::task::yield_now().await;
        outbox.take(10 * MOST_BYTES - 1);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        outbox.take(1);
        waiting.await.expect("it had room");
        drop(outbox.watch(BoxBody::new("x")));
        outbox.put(1).await;
    }
}
