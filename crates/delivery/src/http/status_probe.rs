//! Remembers the status line of the answer that a connection is reading. It counts where the rest of the head cannot be
//! parsed: a 2xx says that the work is done, however the answer is framed.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use http::Extensions;
use hyper::rt::{Read, ReadBuf, ReadBufCursor, Write};
use hyper_util::client::legacy::{
    self,
    connect::{Connected, Connection},
};

/// Bytes of `HTTP/1.1 200`.
const STATUS_LINE_BYTES: usize = 12;
/// Bytes read at once while the status line is incomplete.
const SMALL_READ_BYTES: usize = 512;

/// The beginning of the latest answer of a connection.
#[derive(Debug, Clone, Default)]
pub(super) struct StatusProbe(Arc<Mutex<Vec<u8>>>);

impl StatusProbe {
    /// The status of an answer whose head could not be parsed.
    pub(super) fn status_of(error: &legacy::Error) -> Option<u16> {
        let cause = std::error::Error::source(error)?.downcast_ref::<hyper::Error>()?;
        if !cause.is_parse() {
            return None;
        }
        let mut extras = Extensions::new();
        error.connect_info()?.get_extras(&mut extras);
        let probe = extras.get::<Self>()?.lock();
        let line = std::str::from_utf8(&probe).ok()?.strip_prefix("HTTP/1.")?;
        line.get(2..5)?.parse().ok()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection with its probe.
#[derive(Debug)]
pub(super) struct ProbedStream<T> {
    inner: T,
    probe: StatusProbe,
}

impl<T> ProbedStream<T> {
    pub(super) fn new(inner: T) -> Self {
        Self { inner, probe: StatusProbe::default() }
    }

    /// A request goes out: what comes next is another answer.
    fn begin_request(&self) {
        self.probe.lock().clear();
    }
}

impl<T: Connection> Connection for ProbedStream<T> {
    fn connected(&self) -> Connected {
        self.inner.connected().extra(self.probe.clone())
    }
}

impl<T: Read + Unpin> Read for ProbedStream<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let missing = STATUS_LINE_BYTES.saturating_sub(self.probe.lock().len());
        if missing == 0 {
            return Pin::new(&mut self.inner).poll_read(context, buffer);
        }
        let mut bytes = [0; SMALL_READ_BYTES];
        let room = buffer.remaining().min(SMALL_READ_BYTES);
        let mut small = ReadBuf::new(&mut bytes[..room]);
        ready!(Pin::new(&mut self.inner).poll_read(context, small.unfilled()))?;
        let read = small.filled();
        self.probe.lock().extend_from_slice(&read[..read.len().min(missing)]);
        buffer.put_slice(read);
        Poll::Ready(Ok(()))
    }
}

impl<T: Write + Unpin> Write for ProbedStream<T> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.begin_request();
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.begin_request();
        Pin::new(&mut self.inner).poll_write_vectored(context, slices)
    }
}
