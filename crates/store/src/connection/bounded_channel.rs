//! What a subscriber heard and nobody has looked at yet: bounded in messages and in bytes, however long messages are. What
//! finds no room is dropped, and whoever reads learns on which channels.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::notifier::SubscriberEvent;

/// Bytes of messages that wait at a time; one may be longer if none but it waits.
const MAX_PENDING_BYTES: u32 = 32 << 20;

/// Where to take what was heard.
#[derive(Debug)]
pub struct EventReceiver {
    receiver: mpsc::Receiver<QueuedEvent>,
    dropped: Arc<DroppedMessages>,
}

/// Where to put it.
#[derive(Debug, Clone)]
pub(crate) struct EventSender {
    sender: mpsc::Sender<QueuedEvent>,
    bytes: Arc<Semaphore>,
    dropped: Arc<DroppedMessages>,
}

#[derive(Debug)]
struct QueuedEvent {
    event: SubscriberEvent,
    /// Gives back the room when it is taken.
    _room: Option<OwnedSemaphorePermit>,
}

/// Dropped since somebody looked, for the log, and the channels of which something was, for the reader.
#[derive(Debug, Default)]
struct DroppedMessages(Mutex<(u64, BTreeSet<String>)>);

impl DroppedMessages {
    fn get(&self) -> MutexGuard<'_, (u64, BTreeSet<String>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An inbox for at most so many messages.
pub(crate) fn bounded_channel(messages: usize) -> (EventSender, EventReceiver) {
    let (sender, receiver) = mpsc::channel(messages.max(2));
    let missed: Arc<DroppedMessages> = Arc::default();
    let room = Arc::new(Semaphore::new(usize::try_from(MAX_PENDING_BYTES).unwrap_or(usize::MAX)));
    (EventSender { sender, bytes: room, dropped: missed.clone() }, EventReceiver { receiver, dropped: missed })
}

impl EventSender {
    /// Puts in a message, or drops it if there is no room.
    pub(crate) fn try_send_message(&self, channel: &str, payload: &[u8]) {
        let bytes = u32::try_from(channel.len() + payload.len()).unwrap_or(u32::MAX).min(MAX_PENDING_BYTES);
        // Held while it is tried: who takes what is in the way asks for this afterwards, and must not be too early
        let mut missed = self.dropped.get();
        let has_room = self.bytes.clone().try_acquire_many_owned(bytes).is_ok_and(|room| {
            let heard = SubscriberEvent::Message { channel: channel.to_owned(), payload: payload.to_vec() };
            self.sender.try_send(QueuedEvent { event: heard, _room: Some(room) }).is_ok()
        });
        if !has_room {
            missed.0 += 1;
            missed.1.insert(channel.to_owned());
            metrics::counter!("galley_messages_dropped_total").increment(1);
        }
    }

    /// Puts in what must not be dropped; false if nobody reads any more.
    pub(crate) async fn send(&self, heard: SubscriberEvent) -> bool {
        self.sender.send(QueuedEvent { event: heard, _room: None }).await.is_ok()
    }

    /// Returns when nobody reads any more.
    pub(crate) async fn closed(&self) {
        self.sender.closed().await;
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// How many were dropped since this was asked.
    pub(crate) fn take_dropped_count(&self) -> u64 {
        std::mem::take(&mut self.dropped.get().0)
    }
}

impl EventReceiver {
    /// What was heard next; none when nothing comes any more.
    pub async fn recv(&mut self) -> Option<SubscriberEvent> {
        self.receiver.recv().await.map(|letter| letter.event)
    }

    /// The same if it is there already.
    pub fn try_recv(&mut self) -> Option<SubscriberEvent> {
        self.receiver.try_recv().ok().map(|letter| letter.event)
    }

    /// The channels of which messages were dropped since this was asked. A message is dropped while others wait, so who asks
    /// after each that it takes learns of all.
    pub fn take_dropped_channels(&mut self) -> Vec<String> {
        std::mem::take(&mut self.dropped.get().1).into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn next_length(inbox: &mut EventReceiver) -> usize {
        match inbox.recv().await {
            Some(SubscriberEvent::Message { payload, .. }) => payload.len(),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn what_finds_no_room_by_count_or_by_bytes_is_dropped_and_its_channel_named() {
        let (slot, mut inbox) = bounded_channel(3);
        for channel in ["a", "a", "a", "b", "c", "c"] {
            slot.try_send_message(channel, b"x");
        }
        assert_eq!(
            (slot.take_dropped_count(), inbox.take_dropped_channels()),
            (3, vec!["b".to_owned(), "c".to_owned()])
        );
        assert_eq!((slot.take_dropped_count(), inbox.take_dropped_channels()), (0, vec![]));
        for _ in 0..3 {
            assert_eq!(next_length(&mut inbox).await, 1);
        }
        let most = usize::try_from(MAX_PENDING_BYTES).expect("small");
        slot.try_send_message("long", &vec![0; most / 2]);
        slot.try_send_message("long", &vec![0; most / 2]);
        assert_eq!(inbox.take_dropped_channels(), ["long"], "half and half and their names are too much");
        assert_eq!(next_length(&mut inbox).await, most / 2);
        slot.try_send_message("too long", &vec![0; most + 1]);
        slot.try_send_message("d", b"x");
        assert_eq!(inbox.take_dropped_channels(), ["d"]);
        assert_eq!(next_length(&mut inbox).await, most + 1, "it came alone");
        slot.try_send_message("d", b"x");
        assert_eq!(next_length(&mut inbox).await, 1, "what was taken made room");
    }
}
