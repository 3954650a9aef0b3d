//! Readers that count what comes and note how long it took, and do nothing else: they share the machine with what they
//! listen to. They know no protocol: a message is a `@` with the time at which it was published behind it.

use std::{
    io::ErrorKind,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::galley::now_ms;

/// Digits of a time in microseconds, as they will be for some centuries.
const DIGITS: usize = 16;
/// What is read at a time.
const READ_BYTES: usize = 16 * 1024;
/// Connections that are being made at a time: fewer than the backlog of a listening socket.
const MAX_CONNECTING: usize = 64;
/// Longest wait until a reader is there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Most that a server says before it is asked for something.
const MAX_GREETING_BYTES: usize = 8 * 1024;
/// Readers with the same source address: there are not ports enough for any number.
const READERS_PER_ADDRESS: u32 = 5000;

/// A body of that many bytes, published now.
pub(crate) fn timestamped_message(bytes: usize) -> String {
    let now = format!("@{:0DIGITS$.0}", now_ms() * 1000.0);
    let filling = "x".repeat(bytes.saturating_sub(now.len()));
    now + &filling
}

/// What a client sends, and what it waits for in the answer.
pub(crate) type HandshakeStep = (Vec<u8>, &'static [u8]);

/// All readers of a server.
pub(crate) struct BenchReaders {
    counts: Arc<BenchReaderCounts>,
    readers: JoinSet<()>,
    size: u64,
}

#[derive(Default)]
struct BenchReaderCounts {
    messages: AtomicU64,
    disconnected: AtomicU64,
    is_timing: AtomicBool,
    /// Milliseconds from publishing to here.
    times: Mutex<Vec<f64>>,
}

impl BenchReaders {
    /// Connects them and goes through these steps with each.
    pub(crate) async fn connect(server: SocketAddr, size: u32, steps: &[HandshakeStep]) -> anyhow::Result<Self> {
        let heard: Arc<BenchReaderCounts> = Arc::default();
        let (opening, steps) = (Arc::new(Semaphore::new(MAX_CONNECTING)), Arc::new(steps.to_vec()));
        let mut gathering = JoinSet::new();
        for number in 0..size {
            let (opening, steps) = (opening.clone(), steps.clone());
            gathering.spawn(async move {
                let _permit = opening.acquire().await?;
                let source = Ipv4Addr::new(127, 0, 0, u8::try_from(1 + number / READERS_PER_ADDRESS)?);
                timeout(CONNECT_TIMEOUT, open_connection(server, source, &steps))
                    .await
                    .context("a reader gets no answer")?
            });
        }
        let mut readers = JoinSet::new();
        while let Some(stream) = gathering.join_next().await {
            let stream = stream?.context("does ulimit -n allow as many connections?")?;
            readers.spawn(read_messages(stream, heard.clone()));
        }
        Ok(Self { counts: heard, readers, size: size.into() })
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Messages that came to all of them together, since the last time that this was asked for.
    pub(crate) fn take_count(&self) -> u64 {
        self.counts.messages.swap(0, Relaxed)
    }

    /// Notes from now on how long messages take.
    pub(crate) fn start_timing(&self) {
        self.lock_times().clear();
        self.counts.is_timing.store(true, Relaxed);
    }

    /// How long they took.
    pub(crate) fn stop_timing(&self) -> Vec<f64> {
        self.counts.is_timing.store(false, Relaxed);
        std::mem::take(&mut *self.lock_times())
    }

    /// Waits until that many messages came to all together, unless none comes for a while; how many did.
    pub(crate) async fn wait_for(&self, messages: u64, patience: Duration) -> u64 {
        let (mut last, mut since) = (0, Instant::now());
        loop {
            let count = self.counts.messages.load(Relaxed);
            if count != last {
                (last, since) = (count, Instant::now());
            }
            if count >= messages || since.elapsed() > patience {
                return count;
            }
            sleep(Duration::from_millis(1)).await;
        }
    }

    /// Readers whose connection has ended.
    pub(crate) fn disconnected(&self) -> u64 {
        self.counts.disconnected.load(Relaxed)
    }

    /// Closes all connections.
    pub(crate) async fn disconnect(mut self) {
        self.readers.shutdown().await;
    }

    fn lock_times(&self) -> std::sync::MutexGuard<'_, Vec<f64>> {
        self.counts.times.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn open_connection(server: SocketAddr, source: Ipv4Addr, steps: &[HandshakeStep]) -> anyhow::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((source, 0).into())?;
    let mut stream = socket.connect(server).await?;
    stream.set_nodelay(true)?;
    for (request, answer) in steps {
        stream.write_all(request).await?;
        let (mut got, mut buffer) = (Vec::new(), [0; 512]);
        while !got.windows(answer.len()).any(|part| part == *answer) {
            let count = stream.read(&mut buffer).await?;
            ensure!(count > 0 && got.len() < MAX_GREETING_BYTES, "answered with {}", String::from_utf8_lossy(&got));
            got.extend_from_slice(&buffer[..count]);
        }
    }
    Ok(stream)
}

async fn read_messages(stream: TcpStream, heard: Arc<BenchReaderCounts>) {
    let mut rest = Vec::with_capacity(DIGITS + 1);
    while stream.readable().await.is_ok() && read_available(&stream, &mut rest, &heard) {}
    heard.disconnected.fetch_add(1, Relaxed);
}

/// Counts what is there to be read; false at the end. The buffer is on the stack: readers are many.
fn read_available(stream: &TcpStream, rest: &mut Vec<u8>, heard: &BenchReaderCounts) -> bool {
    let mut buffer = [0; READ_BYTES];
    let begin = rest.len();
    buffer[..begin].copy_from_slice(rest);
    match stream.try_read(&mut buffer[begin..]) {
        Ok(0) => false,
        Ok(count) => {
            count_messages(&buffer[..begin + count], rest, heard);
            true
        }
        Err(error) => error.kind() == ErrorKind::WouldBlock,
    }
}

/// Counts the messages in it, and keeps the beginning of one that is not all here.
fn count_messages(bytes: &[u8], rest: &mut Vec<u8>, heard: &BenchReaderCounts) {
    rest.clear();
    let mut times = heard.is_timing.load(Relaxed).then(|| heard.times.lock().unwrap_or_else(PoisonError::into_inner));
    let (now, mut messages, mut from) = (now_ms(), 0, 0);
    while let Some(found) = memchr::memchr(b'@', &bytes[from..]) {
        let at = from + found;
        let Some(digits) = bytes.get(at + 1..at + 1 + DIGITS) else {
            rest.extend_from_slice(&bytes[at..]);
            break;
        };
        messages += 1;
        from = at + 1 + DIGITS;
        if let Some(times) = &mut times
            && let Some(micros) = std::str::from_utf8(digits).ok().and_then(|text| text.parse::<f64>().ok())
        {
            times.push((now - micros / 1000.0).max(0.0));
        }
    }
    heard.messages.fetch_add(messages, Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_counted_wherever_what_is_read_ends() {
        let text = format!("id: 1\ndata: {}\n\n{}", timestamped_message(40), timestamped_message(256)).into_bytes();
        for cut in 0..text.len() {
            let (heard, mut rest) = (BenchReaderCounts::default(), Vec::new());
            heard.is_timing.store(true, Relaxed);
            count_messages(&text[..cut], &mut rest, &heard);
            let second = [rest.clone(), text[cut..].to_vec()].concat();
            count_messages(&second, &mut rest, &heard);
            assert_eq!((heard.messages.load(Relaxed), rest.len()), (2, 0), "cut at {cut}");
            let times = heard.times.lock().expect("no panic").clone();
            assert!(times.len() == 2 && times.iter().all(|time| (0.0..60_000.0).contains(time)), "{times:?}");
        }
        assert_eq!(timestamped_message(256).len(), 256);
    }
}
