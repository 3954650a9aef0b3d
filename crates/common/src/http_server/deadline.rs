//! What a connection waits for, and until when.

use std::{
    cell::{Cell, RefCell},
    future::Future,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use tokio::time::{Instant, Sleep};

/// The clock of one connection. The connection and its requests share it; both live on one thread.
#[derive(Clone)]
pub(super) struct ConnectionClock(Rc<ClockState>);

struct ClockState {
    head_timeout: Duration,
    idle_timeout: Duration,
    waiting_for: Cell<WaitingFor>,
    /// Bytes came since the request's body ended, so the next head may have begun.
    has_read_ahead: Cell<bool>,
    /// The client said that its last request was the last.
    is_closing: Cell<bool>,
    /// Wakes the connection, which then looks at its deadline.
    connection: RefCell<Option<Waker>>,
    /// Moved only to an earlier time, and when it fires: most deadlines are met.
    timer: RefCell<Option<Pin<Box<Sleep>>>>,
}

/// What the server waits for, and until when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WaitingFor {
    /// The rest of a head.
    Head(Instant),
    /// Nothing: a request is being answered.
    Response,
    /// The next request.
    NextRequest(Instant),
}

/// What did not come in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Late {
    /// The rest of a head: the client is told.
    Head,
    /// Another request: the connection is closed without a word.
    NextRequest,
}

impl ConnectionClock {
    /// The clock of a new connection, whose first head is due.
    pub(super) fn new(head_timeout: Duration, idle_timeout: Duration) -> Self {
        Self(Rc::new(ClockState {
            head_timeout,
            idle_timeout,
            waiting_for: Cell::new(WaitingFor::Head(Instant::now() + head_timeout)),
            has_read_ahead: Cell::new(false),
            is_closing: Cell::new(false),
            connection: RefCell::default(),
            timer: RefCell::default(),
        }))
    }

    /// Ready when what the server waits for is late. Otherwise the connection is woken when it will be.
    pub(super) fn poll_late(&self, cx: &mut Context<'_>) -> Poll<Late> {
        loop {
            let (deadline, late) = match self.0.waiting_for.get() {
                WaitingFor::Head(until) => (until, Late::Head),
                WaitingFor::NextRequest(until) => (until, Late::NextRequest),
                WaitingFor::Response => return Poll::Pending,
            };
            if deadline <= Instant::now() {
                return Poll::Ready(late);
            }
            let mut timer = self.0.timer.borrow_mut();
            let timer = timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
            if timer.deadline() > deadline || timer.is_elapsed() {
                timer.as_mut().reset(deadline);
            }
            // It may have been set for an earlier deadline
            ready!(timer.as_mut().poll(cx));
        }
    }

    /// The connection waits for bytes.
    pub(super) fn register(&self, waker: &Waker) {
        let mut connection = self.0.connection.borrow_mut();
        if !connection.as_ref().is_some_and(|known| known.will_wake(waker)) {
            *connection = Some(waker.clone());
        }
    }

    /// Bytes came.
    pub(super) fn record_bytes(&self) {
        match self.0.waiting_for.get() {
            WaitingFor::NextRequest(_) => self.wait_for_head(),
            WaitingFor::Response => self.0.has_read_ahead.set(true),
            WaitingFor::Head(_) => {}
        }
    }

    /// A head is complete.
    pub(super) fn begin_request(&self) {
        self.0.waiting_for.set(WaitingFor::Response);
        self.0.has_read_ahead.set(false);
    }

    /// The current request is the last of its connection.
    pub(super) fn set_closing(&self) {
        self.0.is_closing.set(true);
    }

    /// Whether an earlier request was the last.
    pub(super) fn is_closing(&self) -> bool {
        self.0.is_closing.get()
    }

    /// The body of the request is complete: what comes now belongs to the next one.
    pub(super) fn end_request_body(&self) {
        self.0.has_read_ahead.set(false);
    }

    /// The response is complete.
    pub(super) fn end_response(&self) {
        if self.0.has_read_ahead.get() {
            self.wait_for_head();
        } else {
            self.0.waiting_for.set(WaitingFor::NextRequest(Instant::now() + self.0.idle_timeout));
        }
        // The connection may not be read from before the next byte comes
        if let Some(connection) = self.0.connection.borrow().as_ref() {
            let _ = self.poll_late(&mut Context::from_waker(connection));
        }
    }

    fn wait_for_head(&self) {
        self.0.waiting_for.set(WaitingFor::Head(Instant::now() + self.0.head_timeout));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
    const IDLE_TIMEOUT: Duration = Duration::from_secs(75);

    /// Lets that time pass and tells what is late then.
    async fn late_after(clock: &ConnectionClock, time: Duration) -> Poll<Late> {
        tokio::time::advance(time).await;
        clock.poll_late(&mut Context::from_waker(Waker::noop()))
    }

    #[tokio::test(start_paused = true)]
    async fn every_head_has_a_deadline_from_its_first_byte() {
        let clock = ConnectionClock::new(HEAD_TIMEOUT, IDLE_TIMEOUT);
        assert_eq!(late_after(&clock, HEAD_TIMEOUT / 2).await, Poll::Pending);
        clock.record_bytes();
        assert_eq!(late_after(&clock, HEAD_TIMEOUT / 2).await, Poll::Ready(Late::Head), "a byte gives no more time");
        for _ in 0..2 {
            clock.begin_request();
            assert_eq!(late_after(&clock, IDLE_TIMEOUT).await, Poll::Pending, "an answer may take any time");
            clock.end_response();
            assert_eq!(late_after(&clock, IDLE_TIMEOUT / 2).await, Poll::Pending);
            clock.record_bytes();
            assert_eq!(late_after(&clock, HEAD_TIMEOUT / 2).await, Poll::Pending);
            assert_eq!(late_after(&clock, HEAD_TIMEOUT / 2).await, Poll::Ready(Late::Head));
        }
        clock.begin_request();
        clock.end_response();
        assert_eq!(late_after(&clock, IDLE_TIMEOUT).await, Poll::Ready(Late::NextRequest));
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_began_during_the_response_before_has_a_deadline_too() {
        let clock = ConnectionClock::new(HEAD_TIMEOUT, IDLE_TIMEOUT);
        clock.begin_request();
        clock.record_bytes();
        clock.end_request_body();
        clock.end_response();
        assert_eq!(late_after(&clock, HEAD_TIMEOUT).await, Poll::Pending, "those bytes were the body");
        clock.begin_request();
        clock.record_bytes();
        clock.end_response();
        assert_eq!(late_after(&clock, HEAD_TIMEOUT).await, Poll::Ready(Late::Head));
    }
}
