//! A connection that ends when the head of a request does not come in time.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    KEEP_ALIVE,
    deadline::{ConnectionClock, Late},
    transport::Transport,
};

const REQUEST_TIMEOUT: &[u8] = b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";

/// A connection with a deadline for each head. When it passes, the client gets 408 and the server sees the end of the
/// connection.
pub(super) struct TimedStream {
    stream: Transport,
    clock: ConnectionClock,
    /// Whether the kernel took all of the last write. If not, the rest of a response is still on its way.
    is_flushed: bool,
    is_over: bool,
}

impl TimedStream {
    pub(super) fn new(stream: Transport, head_timeout: Duration) -> Self {
        Self { stream, clock: ConnectionClock::new(head_timeout, KEEP_ALIVE), is_flushed: true, is_over: false }
    }

    pub(super) fn clock(&self) -> ConnectionClock {
        self.clock.clone()
    }

    fn end(&mut self, late: Late, cx: &mut Context<'_>) {
        self.is_over = true;
        if late == Late::Head && self.is_flushed {
            // A client that does not take it gets none
            let _ = Pin::new(&mut self.stream).poll_write(cx, REQUEST_TIMEOUT);
        }
    }
}

impl AsyncRead for TimedStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.is_over {
            return Poll::Ready(Ok(()));
        }
        // Before the read: a client that sends without a pause must not outrun the deadline
        if let Poll::Ready(late) = this.clock.poll_late(cx) {
            this.end(late, cx);
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(cx, buffer);
        if read.is_pending() {
            this.clock.register(cx.waker());
        }
        ready!(read)?;
        if buffer.filled().len() > before {
            this.clock.record_bytes();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TimedStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(cx, bytes);
        this.is_flushed = matches!(&written, Poll::Ready(Ok(count)) if *count == bytes.len());
        written
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
