//! Where subscriptions deliver to: an endpoint that notes who sends what, and sometimes refuses, hangs up or takes its time.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};

use super::{
    POLL_INTERVAL,
    delivery_check::{CheckedDelivery, CheckedResponse},
    reader_check::CheckedPosition,
    stream_event::parse_tag,
    worker_sockets::{SocketOwner, WorkerSockets},
};
use testkit::{ReceivedRequest, TEST_TIMEOUT, read_request};

/// Of a thousand requests that many are refused, that many are not answered, and that many are answered late.
const REFUSED_PER_MILLE: u32 = 15;
const CLOSED_PER_MILLE: u32 = 10;
const LATE_PER_MILLE: u32 = 10;
/// How late, in milliseconds: less than anybody waits.
const DELAY_MS: std::ops::Range<u64> = 10..300;
/// Attempts that may fail: a broadcast whose message fails more often lets it go on as a job, which is any worker's.
const MAX_FAILURES: u32 = 2;
/// Odd requests that are noted.
const MAX_FINDINGS: usize = 20;

const ACCEPTED_RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
const REFUSED_RESPONSE: &[u8] = b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 12\r\n\r\nout of order";

/// It listens as long as the program runs.
pub(super) struct CheckedEndpoint {
    pub(super) address: SocketAddr,
    channels: HashMap<String, usize>,
    worker_sockets: Arc<WorkerSockets>,
    state: Mutex<CheckedEndpointState>,
}

struct CheckedEndpointState {
    random: StdRng,
    /// By subscription, one list for each channel.
    deliveries: HashMap<String, Vec<Vec<CheckedDelivery>>>,
    /// What each message of a subscription is called by senders.
    ids: HashMap<(String, usize, CheckedPosition), String>,
    findings: Vec<String>,
}

/// What it does with a request.
#[derive(Clone, Copy)]
enum EndpointReaction {
    Accept,
    AcceptLate(Duration),
    Refuse,
    CloseConnection,
}

/// What a request says of itself.
struct CheckedRequest {
    subscription: String,
    channel: usize,
    delivery: CheckedDelivery,
}

impl CheckedEndpoint {
    pub(super) async fn start(channels: &[String], peers: Arc<WorkerSockets>, seed: u64) -> anyhow::Result<Arc<Self>> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let noted = CheckedEndpointState {
            random: StdRng::seed_from_u64(seed ^ 0xE0D),
            deliveries: HashMap::new(),
            ids: HashMap::new(),
            findings: Vec::new(),
        };
        let endpoint = Arc::new(Self {
            address: listener.local_addr()?,
            channels: channels.iter().cloned().zip(0..).collect(),
            worker_sockets: peers,
            state: Mutex::new(noted),
        });
        let serving = endpoint.clone();
        tokio::spawn(async move {
            while let Ok((stream, peer)) = listener.accept().await {
                let serving = serving.clone();
                tokio::spawn(async move {
                    serving.serve(stream, peer).await;
                    serving.worker_sockets.forget(peer);
                });
            }
        });
        Ok(endpoint)
    }

    /// Everything that came for a subscription, for each channel in the order in which it began.
    pub(super) fn take_deliveries(&self, subscription: &str) -> Vec<Vec<CheckedDelivery>> {
        let none = || vec![Vec::new(); self.channels.len()];
        let mut all = self.lock_state().deliveries.remove(subscription).unwrap_or_else(none);
        for deliveries in &mut all {
            deliveries.sort_by_key(|delivery| delivery.started_at);
        }
        all
    }

    /// What was odd about requests.
    pub(super) fn findings(&self) -> Vec<String> {
        self.lock_state().findings.clone()
    }

    fn lock_state(&self) -> MutexGuard<'_, CheckedEndpointState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whose connection it is; none when a client that had it is gone.
    async fn worker_of_connection(&self, peer: SocketAddr) -> Option<usize> {
        let deadline = Instant::now() + TEST_TIMEOUT;
        while Instant::now() < deadline {
            let (peers, here) = (self.worker_sockets.clone(), self.address);
            match tokio::task::spawn_blocking(move || peers.owner_of(peer, here)).await {
                Ok(SocketOwner::Worker(worker)) => return Some(worker),
                Ok(SocketOwner::Unknown) => sleep(POLL_INTERVAL).await,
                Ok(SocketOwner::Closed) | Err(_) => return None,
            }
        }
        self.add_finding(format!("it is not known whose a connection from {peer} was"));
        None
    }

    async fn serve(&self, mut stream: TcpStream, peer: SocketAddr) {
        let Some(worker) = self.worker_of_connection(peer).await else { return };
        let _ = stream.set_nodelay(true);
        while let Some(received) = read_request(&mut stream).await {
            let began = Instant::now();
            let mut request = match self.parse_request(&received, worker, began) {
                Ok(request) => request,
                Err(error) => return self.add_finding(format!("{error:#}: {}", received.head)),
            };
            let whim = self.pick_reaction(request.delivery.attempt);
            let (response, ended) = react(&mut stream, whim).await;
            (request.delivery.response, request.delivery.ended_at) = (response, ended);
            self.record(request);
            if matches!(response, CheckedResponse::ConnectionClosed | CheckedResponse::ClientGone) {
                return;
            }
        }
    }

    fn parse_request(
        &self,
        received: &ReceivedRequest,
        worker: usize,
        began: Instant,
    ) -> anyhow::Result<CheckedRequest> {
        let header = |name: &str| received.header(name).with_context(|| format!("a request without {name}"));
        let name = header("galley-channel")?;
        let channel = *self.channels.get(name).context("another channel")?;
        let position: CheckedPosition = header("galley-message-id")?.parse()?;
        let subscription = header("galley-subscription")?.to_owned();
        let id = header("webhook-id")?;
        let key = (subscription.clone(), channel, position);
        let before = self.lock_state().ids.entry(key).or_insert_with(|| id.to_owned()).clone();
        ensure!(before == id, "{name} {position} is {before} and {id}");
        let mark = parse_tag(name, std::str::from_utf8(&received.body)?)?;
        let attempt = header("galley-attempt")?.parse()?;
        let delivery = CheckedDelivery {
            position,
            tag: mark,
            attempt,
            worker,
            started_at: began,
            ended_at: began,
            response: CheckedResponse::ClientGone,
        };
        Ok(CheckedRequest { subscription, channel, delivery })
    }

    /// What it does with a request, given which attempt it is.
    fn pick_reaction(&self, attempt: u32) -> EndpointReaction {
        let random = &mut self.lock_state().random;
        let (die, late) = (random.random_range(0..1000), Duration::from_millis(random.random_range(DELAY_MS)));
        match die {
            _ if attempt > MAX_FAILURES => EndpointReaction::Accept,
            0..REFUSED_PER_MILLE => EndpointReaction::Refuse,
            die if die < REFUSED_PER_MILLE + CLOSED_PER_MILLE => EndpointReaction::CloseConnection,
            die if die < REFUSED_PER_MILLE + CLOSED_PER_MILLE + LATE_PER_MILLE => EndpointReaction::AcceptLate(late),
            _ => EndpointReaction::Accept,
        }
    }

    fn record(&self, request: CheckedRequest) {
        let none = || vec![Vec::new(); self.channels.len()];
        let mut noted = self.lock_state();
        noted.deliveries.entry(request.subscription).or_insert_with(none)[request.channel].push(request.delivery);
    }

    fn add_finding(&self, finding: String) {
        let findings = &mut self.lock_state().findings;
        if findings.len() < MAX_FINDINGS {
            findings.push(finding);
        }
    }
}

/// What became of a request, and when: before the answer was on its way.
async fn react(stream: &mut TcpStream, whim: EndpointReaction) -> (CheckedResponse, Instant) {
    let late = if let EndpointReaction::AcceptLate(late) = whim { late } else { Duration::ZERO };
    // Nothing comes before the answer but the end of the connection: then nobody would hear it
    let gone = timeout(late, stream.read(&mut [0; 1])).await;
    let ended = Instant::now();
    if gone.is_ok() {
        return (CheckedResponse::ClientGone, ended);
    }
    let (bytes, response) = match whim {
        EndpointReaction::Accept | EndpointReaction::AcceptLate(_) => (ACCEPTED_RESPONSE, CheckedResponse::Accepted),
        EndpointReaction::Refuse => (REFUSED_RESPONSE, CheckedResponse::Refused),
        EndpointReaction::CloseConnection => return (CheckedResponse::ConnectionClosed, ended),
    };
    let is_sent = stream.write_all(bytes).await.is_ok();
    (if is_sent { response } else { CheckedResponse::ClientGone }, ended)
}
