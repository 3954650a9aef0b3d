//! What a channel's ring knows of the reads that fill it.

use std::time::Duration;

use super::plain_messages::WaitingPlainMessages;
use crate::connection::hint_pace::FruitlessLooks;
use model::message::Position;

/// The longest pause between two reads that announcements ask for and that find nothing.
const MAX_FRUITLESS_PAUSE: Duration = Duration::from_millis(200);

/// The state of reading a channel.
#[derive(Debug)]
pub(super) struct CatchUp {
    pub(super) is_running: bool,
    /// The number of the read that runs, or of the last one.
    pub(super) read: u64,
    /// The newest position that was announced since the read began.
    pub(super) announced: Option<Position>,
    /// Read once more, whatever was announced.
    pub(super) is_forced: bool,
    pub(super) fruitless: FruitlessLooks,
    /// Messages of plain publishers, if the channel has some.
    pub(super) plain: Option<WaitingPlainMessages>,
}

impl CatchUp {
    pub(super) fn new(is_plain: bool) -> Self {
        Self {
            is_running: false,
            read: 0,
            announced: None,
            is_forced: false,
            fruitless: FruitlessLooks::new(MAX_FRUITLESS_PAUSE),
            plain: is_plain.then(WaitingPlainMessages::default),
        }
    }

    /// Whether there is something to read or to wait for that the last read did not reach.
    pub(super) fn needs_another_read(&self, head: Option<Position>) -> bool {
        let is_announced = self.announced.is_some_and(|announced| head.is_none_or(|head| head < announced));
        self.is_forced || is_announced || self.has_waiting()
    }

    /// Whether messages of plain publishers wait.
    pub(super) fn has_waiting(&self) -> bool {
        self.plain.as_ref().is_some_and(|plain| !plain.is_empty())
    }
}
