//! The queue of one subscriber, bounded in messages and bytes. Messages that do not fit are dropped, and the reader
//! learns of which topics. Connection events are a state instead of queue entries, so they are never dropped.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};

use super::Registration;

/// Maximum bytes of unread messages; a larger message fits if it is the only one.
const MAX_PENDING_BYTES: u32 = 32 << 20;

/// What a subscriber reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SubscriberEvent {
    /// From here on messages of these topics arrive; earlier ones may be missing. After
    /// [`SubscriberEvent::ConnectionLost`] these are the topics that were lost, otherwise new ones.
    Subscribed(Vec<String>),
    /// A connection broke, or slots have moved; messages published now do not arrive, of all topics or of some.
    ConnectionLost,
    /// A message.
    Message {
        /// The topic.
        channel: String,
        /// The payload.
        payload: Vec<u8>,
    },
}

/// The reading end of the queue.
pub struct EventReceiver {
    receiver: mpsc::Receiver<QueuedMessage>,
    shared: Arc<QueueState>,
    _registration: Option<Registration>,
}

/// The writing end.
#[derive(Clone)]
pub(super) struct EventSender {
    sender: mpsc::Sender<QueuedMessage>,
    bytes: Arc<Semaphore>,
    shared: Arc<QueueState>,
}

struct QueuedMessage {
    channel: String,
    payload: Vec<u8>,
    /// Frees the message's bytes when it is read.
    _bytes: OwnedSemaphorePermit,
}

#[derive(Default)]
struct QueueState {
    connection: Mutex<ConnectionState>,
    connection_changed: Notify,
    dropped: Mutex<DroppedMessages>,
}

/// The connection events that the reader has not seen yet.
#[derive(Default)]
struct ConnectionState {
    is_lost: bool,
    subscribed: BTreeSet<String>,
}

/// Drops since the last check: their number for the log, their topics for the reader.
#[derive(Default)]
struct DroppedMessages {
    count: u64,
    topics: BTreeSet<String>,
}

impl QueueState {
    fn connection(&self) -> MutexGuard<'_, ConnectionState> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn dropped(&self) -> MutexGuard<'_, DroppedMessages> {
        self.dropped.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_connection_event(&self) -> Option<SubscriberEvent> {
        let mut connection = self.connection();
        if std::mem::take(&mut connection.is_lost) {
            return Some(SubscriberEvent::ConnectionLost);
        }
        let subscribed = std::mem::take(&mut connection.subscribed);
        (!subscribed.is_empty()).then(|| SubscriberEvent::Subscribed(subscribed.into_iter().collect()))
    }
}

/// A queue for at most `messages` unread messages.
pub(super) fn bounded_channel(messages: usize) -> (EventSender, EventReceiver) {
    let (sender, receiver) = mpsc::channel(messages.max(1));
    let shared: Arc<QueueState> = Arc::default();
    let bytes = Arc::new(Semaphore::new(usize::try_from(MAX_PENDING_BYTES).unwrap_or(usize::MAX)));
    (EventSender { sender, bytes, shared: shared.clone() }, EventReceiver { receiver, shared, _registration: None })
}

impl EventSender {
    /// Queues a message, or drops it if it does not fit.
    pub(super) fn try_send_message(&self, channel: &str, payload: &[u8]) {
        let bytes = u32::try_from(channel.len() + payload.len()).unwrap_or(u32::MAX).min(MAX_PENDING_BYTES);
        // Locked during the attempt: the reader asks for dropped topics after each message, and must not be too early
        let mut dropped = self.shared.dropped();
        let has_room = self.bytes.clone().try_acquire_many_owned(bytes).is_ok_and(|bytes| {
            let message = QueuedMessage { channel: channel.to_owned(), payload: payload.to_vec(), _bytes: bytes };
            self.sender.try_send(message).is_ok()
        });
        if !has_room {
            dropped.count += 1;
            dropped.topics.insert(channel.to_owned());
            metrics::counter!("galley_messages_dropped_total").increment(1);
        }
    }

    /// Reports that these topics arrive from now on.
    pub(super) fn send_subscribed(&self, topics: Vec<String>) {
        self.shared.connection().subscribed.extend(topics);
        self.shared.connection_changed.notify_one();
    }

    /// Reports that the connection broke. Unread messages are stale.
    pub(super) fn send_connection_lost(&self) {
        *self.shared.connection() = ConnectionState { is_lost: true, subscribed: BTreeSet::new() };
        self.shared.connection_changed.notify_one();
    }

    /// Reports that messages of one topic do not arrive any more.
    pub(super) fn send_topic_lost(&self, topic: &str) {
        let mut connection = self.shared.connection();
        connection.is_lost = true;
        connection.subscribed.remove(topic);
        drop(connection);
        self.shared.connection_changed.notify_one();
    }

    /// The number of drops since the last call.
    pub(super) fn take_dropped_count(&self) -> u64 {
        std::mem::take(&mut self.shared.dropped().count)
    }
}

impl EventReceiver {
    pub(super) fn registered(self, registration: Registration) -> Self {
        Self { _registration: Some(registration), ..self }
    }

    /// Waits for the next event; none when nothing more can come. Cancel safe.
    pub async fn recv(&mut self) -> Option<SubscriberEvent> {
        loop {
            if let Some(event) = self.shared.take_connection_event() {
                return Some(event);
            }
            tokio::select! {
                biased;
                () = self.shared.connection_changed.notified() => {}
                message = self.receiver.recv() => return message.map(QueuedMessage::into_event),
            }
        }
    }

    /// The next event if there is one now.
    pub fn try_recv(&mut self) -> Option<SubscriberEvent> {
        let message = || self.receiver.try_recv().ok().map(QueuedMessage::into_event);
        self.shared.take_connection_event().or_else(message)
    }

    /// The topics with drops since the last call. Messages are dropped only while others are unread, so a reader that
    /// asks after each message learns of all.
    pub fn take_dropped_channels(&mut self) -> Vec<String> {
        std::mem::take(&mut self.shared.dropped().topics).into_iter().collect()
    }
}

impl QueuedMessage {
    fn into_event(self) -> SubscriberEvent {
        SubscriberEvent::Message { channel: self.channel, payload: self.payload }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn next_length(queue: &mut EventReceiver) -> usize {
        match queue.recv().await {
            Some(SubscriberEvent::Message { payload, .. }) => payload.len(),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn messages_without_room_by_number_or_by_bytes_are_dropped_and_their_topic_is_named() {
        let (sender, mut queue) = bounded_channel(3);
        for topic in ["a", "a", "a", "b", "c", "c"] {
            sender.try_send_message(topic, b"x");
        }
        assert_eq!(
            (sender.take_dropped_count(), queue.take_dropped_channels()),
            (3, vec!["b".to_owned(), "c".to_owned()])
        );
        assert_eq!((sender.take_dropped_count(), queue.take_dropped_channels()), (0, vec![]));
        for _ in 0..3 {
            assert_eq!(next_length(&mut queue).await, 1);
        }
        let max = usize::try_from(MAX_PENDING_BYTES).expect("small");
        sender.try_send_message("long", &vec![0; max / 2]);
        sender.try_send_message("long", &vec![0; max / 2]);
        assert_eq!(queue.take_dropped_channels(), ["long"], "two halves and their names are too much");
        assert_eq!(next_length(&mut queue).await, max / 2);
        sender.try_send_message("too long", &vec![0; max + 1]);
        sender.try_send_message("d", b"x");
        assert_eq!(queue.take_dropped_channels(), ["d"]);
        assert_eq!(next_length(&mut queue).await, max + 1, "it came alone");
        sender.try_send_message("d", b"x");
        assert_eq!(next_length(&mut queue).await, 1, "reading made room");
    }

    #[tokio::test]
    async fn a_lost_connection_is_told_however_full_the_queue_is_and_the_last_state_counts() {
        let (sender, mut queue) = bounded_channel(1);
        let topics = || vec!["a".to_owned()];
        sender.send_subscribed(topics());
        sender.try_send_message("a", b"x");
        sender.send_connection_lost();
        sender.send_subscribed(topics());
        sender.send_connection_lost();
        assert_eq!(queue.recv().await, Some(SubscriberEvent::ConnectionLost));
        assert_eq!(next_length(&mut queue).await, 1);
        assert_eq!(queue.try_recv(), None, "nothing arrives at present");
        sender.send_subscribed(topics());
        assert_eq!(queue.recv().await, Some(SubscriberEvent::Subscribed(topics())));
        drop(sender);
        assert_eq!(queue.recv().await, None);
    }
}
