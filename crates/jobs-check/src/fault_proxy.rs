//! A way to a server on which what passes can be disturbed: TCP, with an eye for the first bytes of commands and requests.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use anyhow::Context;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinHandle,
    time::sleep,
};

use crate::plan::LinkDisturbance;

const DELAY: Duration = Duration::from_millis(200);
const BYTES_PER_SECOND: usize = 10_000;
/// Bytes at a time while bytes trickle.
const SLICE_BYTES: usize = 7;
/// Slices of a piece; what is left comes at once, so that large answers do not last for minutes.
const MAX_SLICES: usize = 64;
const BUFFER_BYTES: usize = 16 * 1024;
/// What a reply is dropped after: writes of the store, and requests that change something.
const TRIGGERS: [&[u8]; 6] =
    [b"EVALSHA", b"XADD", b"XREADGROUP", b"POST /ojs/v1/jobs", b"/workers/ack", b"/workers/fetch"];

/// The way; gone when it is dropped.
pub(crate) struct FaultProxy {
    address: SocketAddr,
    link: Arc<LinkState>,
    task: JoinHandle<()>,
}

struct LinkState {
    target: Mutex<SocketAddr>,
    disturbance: watch::Sender<Option<LinkDisturbance>>,
    hits: AtomicU64,
}

impl LinkState {
    fn hit(&self) {
        self.hits.fetch_add(1, SeqCst);
    }

    fn current(&self) -> Option<LinkDisturbance> {
        *self.disturbance.borrow()
    }

    /// Waits while nothing may pass.
    async fn wait_until_open(&self) {
        let mut changes = self.disturbance.subscribe();
        if *changes.borrow() == Some(LinkDisturbance::BlackHole) {
            self.hit();
            let _ = changes.wait_for(|now| *now != Some(LinkDisturbance::BlackHole)).await;
        }
    }
}

impl FaultProxy {
    /// Opens a way to a server.
    pub(crate) async fn start(target: SocketAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("a free port")?;
        let address = listener.local_addr()?;
        let link = Arc::new(LinkState {
            target: Mutex::new(target),
            disturbance: watch::Sender::new(None),
            hits: AtomicU64::new(0),
        });
        let shared = link.clone();
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(relay(client, shared.clone()));
            }
        });
        Ok(Self { address, link, task })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// New connections lead there.
    pub(crate) fn lead_to(&self, target: SocketAddr) {
        *self.link.target.lock().unwrap_or_else(PoisonError::into_inner) = target;
    }

    /// Disturbs what passes until [`FaultProxy::heal`].
    pub(crate) fn disturb(&self, disturbance: LinkDisturbance) {
        self.link.hits.store(0, SeqCst);
        self.link.disturbance.send_replace(Some(disturbance));
    }

    /// How often it hit something so far.
    pub(crate) fn hits(&self) -> u64 {
        self.link.hits.load(SeqCst)
    }

    /// Ends that; how often it hit something.
    pub(crate) fn heal(&self) -> u64 {
        self.link.disturbance.send_replace(None);
        self.hits()
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn relay(client: TcpStream, link: Arc<LinkState>) {
    link.wait_until_open().await;
    let target = *link.target.lock().unwrap_or_else(PoisonError::into_inner);
    let Ok(server) = TcpStream::connect(target).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    // Set when the reply to a command must not arrive
    let is_reply_dropped = watch::Sender::new(false);
    // The connection ends with either direction
    tokio::select! {
        () = pass_requests(&link, from_client, to_server, &is_reply_dropped) => {}
        () = pass_replies(&link, from_server, to_client, &is_reply_dropped) => {}
    }
}

async fn pass_requests(
    link: &LinkState,
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    is_reply_dropped: &watch::Sender<bool>,
) {
    let mut bytes = vec![0; BUFFER_BYTES];
    while let Ok(count @ 1..) = from.read(&mut bytes).await {
        let piece = &bytes[..count];
        link.wait_until_open().await;
        let has_trigger = || TRIGGERS.iter().any(|trigger| piece.windows(trigger.len()).any(|part| part == *trigger));
        if link.current() == Some(LinkDisturbance::DropReply) && has_trigger() {
            is_reply_dropped.send_replace(true);
        }
        if write(link, &mut to, piece).await.is_err() {
            return;
        }
    }
}

async fn pass_replies(
    link: &LinkState,
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    is_reply_dropped: &watch::Sender<bool>,
) {
    let mut bytes = vec![0; BUFFER_BYTES];
    while let Ok(count @ 1..) = from.read(&mut bytes).await {
        let piece = &bytes[..count];
        link.wait_until_open().await;
        if *is_reply_dropped.borrow() {
            link.hit();
            return;
        }
        if link.current() == Some(LinkDisturbance::Reset) {
            link.hit();
            let _ = to.write_all(&piece[..count / 2]).await;
            // What it had sent and nobody read makes the kernel reset the connection
            return;
        }
        if write(link, &mut to, piece).await.is_err() {
            return;
        }
    }
}

async fn write(link: &LinkState, to: &mut OwnedWriteHalf, piece: &[u8]) -> std::io::Result<()> {
    match link.current() {
        Some(LinkDisturbance::Delay) => {
            link.hit();
            sleep(DELAY).await;
            to.write_all(piece).await
        }
        Some(LinkDisturbance::Bandwidth) => {
            link.hit();
            for part in piece.chunks(BYTES_PER_SECOND / 20) {
                to.write_all(part).await?;
                if link.current() == Some(LinkDisturbance::Bandwidth) {
                    sleep(Duration::from_millis(50)).await;
                }
            }
            Ok(())
        }
        Some(LinkDisturbance::Slice) => {
            link.hit();
            let (sliced, rest) = piece.split_at(piece.len().min(SLICE_BYTES * MAX_SLICES));
            for part in sliced.chunks(SLICE_BYTES) {
                to.write_all(part).await?;
                tokio::task::yield_now().await;
            }
            to.write_all(rest).await
        }
        _ => to.write_all(piece).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that answers each piece with itself, behind a proxy.
    async fn echo() -> FaultProxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = stream.split();
                    let _ = tokio::io::copy(&mut from, &mut to).await;
                });
            }
        });
        FaultProxy::start(address).await.expect("a proxy")
    }

    /// What comes back for some bytes on a new connection, until it ends or all of it is there.
    async fn ask(proxy: &FaultProxy, bytes: &[u8]) -> Vec<u8> {
        let mut stream = TcpStream::connect(proxy.address()).await.expect("it listens");
        stream.write_all(bytes).await.expect("it takes bytes");
        let (mut received, mut part) = (Vec::new(), [0; 1024]);
        while received.len() < bytes.len() {
            match stream.read(&mut part).await {
                Ok(count @ 1..) => received.extend(&part[..count]),
                _ => break,
            }
        }
        received
    }

    #[tokio::test]
    async fn what_is_slow_or_in_slices_arrives_whole_and_counts_as_hit() {
        let proxy = echo().await;
        let bytes = b"EVALSHA and more".repeat(40);
        assert_eq!(ask(&proxy, &bytes).await, bytes);
        assert_eq!(proxy.heal(), 0, "nothing was disturbed");
        for disturbance in [LinkDisturbance::Delay, LinkDisturbance::Bandwidth, LinkDisturbance::Slice] {
            proxy.disturb(disturbance);
            assert_eq!(ask(&proxy, &bytes).await, bytes, "{disturbance:?}");
            assert!(proxy.heal() > 0, "{disturbance:?}");
        }
    }

    #[tokio::test]
    async fn a_reply_is_dropped_after_a_command_that_changes_something() {
        let proxy = echo().await;
        proxy.disturb(LinkDisturbance::DropReply);
        assert_eq!(ask(&proxy, b"PING").await, b"PING");
        assert_eq!(ask(&proxy, b"*3 EVALSHA x").await, b"");
        assert_eq!(proxy.heal(), 1);
        assert_eq!(ask(&proxy, b"*3 EVALSHA x").await, b"*3 EVALSHA x");
    }

    #[tokio::test]
    async fn a_reset_cuts_a_reply_and_a_black_hole_keeps_it_until_it_is_healed() {
        let proxy = echo().await;
        proxy.disturb(LinkDisturbance::Reset);
        assert_eq!(ask(&proxy, b"12345678").await, b"1234");
        assert_eq!(proxy.heal(), 1);
        proxy.disturb(LinkDisturbance::BlackHole);
        let asked = ask(&proxy, b"1234");
        tokio::pin!(asked);
        // The client waits until the proxy has noticed
        while proxy.hits() == 0 {
            tokio::select! {
                got = &mut asked => panic!("{got:?} came through"),
                () = tokio::task::yield_now() => {}
            }
        }
        assert!(proxy.heal() > 0);
        assert_eq!(asked.await, b"1234");
    }
}
