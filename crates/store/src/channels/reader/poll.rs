//! How a reader is polled. Thousands are polled for each message: no future is made for an event.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::atomic::Ordering::SeqCst,
    task::{Context, Poll, ready},
};

use futures_util::{FutureExt, Stream};

use super::{ChannelReader, ReadChannel};
use crate::{
    channels::{cursor::ReaderEvent, hub::ChannelHubInner},
    log_interruption,
};

/// After this many messages that its filters do not let pass, a reader tells where it is. So others get their turn, and a
/// client that comes back goes on there.
const MAX_SKIPPED: u32 = 256;
/// Maximum number of history pages in memory for one reader.
const MAX_PAGES_PER_READER: usize = 4;

impl ChannelReader {
    /// Waits for the next event. Cancel safe.
    pub async fn next(&mut self) -> ReaderEvent {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// Polls for the next event. The task of the last call is woken when there may be one.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<ReaderEvent> {
        loop {
            if self.is_list_due {
                ready!(self.poll_listing(cx));
            }
            if let Some(channel) = self.newly_skipped.pop() {
                return Poll::Ready(ReaderEvent::ChannelSkipped(channel));
            }
            if self.poll_channel_names(cx).is_ready() {
                continue;
            }
            if self.channels.is_empty() && self.poll_stopped(cx).is_ready() {
                return Poll::Ready(ReaderEvent::Stopped);
            }
            let (channels, turn) = (&mut self.channels, &mut self.next_channel);
            return poll_channels(&self.hub, channels, turn, self.message_head, cx);
        }
    }

    /// Reads the list of channels and adds those that match.
    fn poll_listing(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let listing = self.listing.get_or_insert_with(|| self.hub.readable_channels());
        let listed = ready!(listing.poll_unpin(cx));
        self.listing = None;
        match listed {
            Ok(names) => self.process_channel_list(&names),
            // The next sweep or subscription reports these names again
            Err(error) => log_interruption("joining channels", &error),
        }
        self.is_list_due = false;
        Poll::Ready(())
    }

    /// Ready when there were names of new channels.
    fn poll_channel_names(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(names) = &mut self.channel_names else { return Poll::Pending };
        match ready!(Pin::new(names).poll_next(cx)) {
            Some(Ok(names)) if self.is_list_loaded => self.add_matching(names.iter()),
            // Some were missed, or none is known yet
            Some(_) => self.is_list_due = true,
            // The hub has stopped
            None => self.channel_names = None,
        }
        Poll::Ready(())
    }

    /// Ready when the process stops, for a reader without channels: nothing else would wake it.
    fn poll_stopped(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let stop = &self.hub.stop;
        let stopped = self.stopped.get_or_insert_with(|| Box::pin(stop.clone().cancelled_owned()));
        if stop.is_cancelled() { Poll::Ready(()) } else { stopped.as_mut().poll(cx) }
    }
}

/// Polls the channels in turn.
fn poll_channels(
    hub: &ChannelHubInner,
    channels: &mut [ReadChannel],
    turn: &mut usize,
    message_head: &'static str,
    cx: &mut Context<'_>,
) -> Poll<ReaderEvent> {
    let is_stopped = || hub.is_stopped.load(SeqCst);
    if is_stopped() {
        return Poll::Ready(ReaderEvent::Stopped);
    }
    let mut skipped = 0;
    let mut pages = channels.iter().filter(|read| read.cursor.has_page()).count();
    loop {
        let mut is_refused = false;
        for offset in 0..channels.len() {
            let index = (*turn + offset) % channels.len();
            let read = &mut channels[index];
            let others = pages - usize::from(read.cursor.has_page());
            let may_read = others < MAX_PAGES_PER_READER;
            while let Poll::Ready(mut told) = read.cursor.poll_next(may_read, cx) {
                if let ReaderEvent::Message(message) = &told {
                    read.position = message.position.unwrap_or(read.position);
                    if read.skips(message) {
                        skipped += 1;
                        if skipped < MAX_SKIPPED && read.skipped < MAX_SKIPPED {
                            continue;
                        }
                        *turn = index + 1;
                        return read.take_skipped().map_or(Poll::Pending, Poll::Ready);
                    }
                }
                *turn = index + 1;
                read.replace_with_delta(&mut told, message_head);
                return Poll::Ready(told);
            }
            let cursor = &read.cursor;
            pages = others + usize::from(cursor.has_page());
            is_refused |= !may_read;
        }
        // Another cursor wakes it, unless all pages are done by now
        if !is_refused || pages >= MAX_PAGES_PER_READER {
            break;
        }
    }
    // From here on the hub wakes the cursors when it stops
    if is_stopped() { Poll::Ready(ReaderEvent::Stopped) } else { Poll::Pending }
}
