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
    LOOK_EVERY,
    delivered::{Delivery, Response},
    peers::{Peers, Whose},
    readers::mark_of,
    verdict::Position,
};
use testkit::{LIMIT, Received, read_request};

/// Of a thousand requests so many are refused, so many are not answered, and so many are answered late.
const REFUSED: u32 = 15;
const HUNG_UP: u32 = 10;
const LATE: u32 = 10;
/// How late, in milliseconds: less than anybody waits.
const LATE_MS: std::ops::Range<u64> = 10..300;
/// Attempts that may fail: a broadcast whose message fails more often lets it go on as a job, which is any worker's.
const MOST_FAILURES: u32 = 2;
/// Odd requests that are noted.
const MOST_FINDINGS: usize = 20;

const ACCEPTED: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
const OUT_OF_ORDER: &[u8] = b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 12\r\n\r\nout of order";

/// It listens as long as the program runs.
pub(super) struct Endpoint {
    pub(super) address: SocketAddr,
    channels: HashMap<String, usize>,
    peers: Arc<Peers>,
    noted: Mutex<Noted>,
}

struct Noted {
    random: StdRng,
    /// By subscription, one list for each channel.
    deliveries: HashMap<String, Vec<Vec<Delivery>>>,
    /// What each message of a subscription is called by senders.
    ids: HashMap<(String, usize, Position), String>,
    findings: Vec<String>,
}

/// What it does with a request.
#[derive(Clone, Copy)]
enum Whim {
    Accept,
    AcceptLate(Duration),
    Refuse,
    HangUp,
}

/// What a request says of itself.
struct Request {
    subscription: String,
    channel: usize,
    delivery: Delivery,
}

impl Endpoint {
    pub(super) async fn start(channels: &[String], peers: Arc<Peers>, seed: u64) -> anyhow::Result<Arc<Self>> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let noted = Noted {
            random: StdRng::seed_from_u64(seed ^ 0xE0D),
            deliveries: HashMap::new(),
            ids: HashMap::new(),
            findings: Vec::new(),
        };
        let endpoint = Arc::new(Self {
            address: listener.local_addr()?,
            channels: channels.iter().cloned().zip(0..).collect(),
            peers,
            noted: Mutex::new(noted),
        });
        let serving = endpoint.clone();
        tokio::spawn(async move {
            while let Ok((stream, peer)) = listener.accept().await {
                let serving = serving.clone();
                tokio::spawn(async move {
                    serving.serve(stream, peer).await;
                    serving.peers.forget(peer);
                });
            }
        });
        Ok(endpoint)
    }

    /// Everything that came for a subscription, for each channel in the order in which it began.
    pub(super) fn deliveries(&self, subscription: &str) -> Vec<Vec<Delivery>> {
        let none = || vec![Vec::new(); self.channels.len()];
        let mut all = self.noted().deliveries.remove(subscription).unwrap_or_else(none);
        for deliveries in &mut all {
            deliveries.sort_by_key(|delivery| delivery.began);
        }
        all
    }

    /// What was odd about requests.
    pub(super) fn findings(&self) -> Vec<String> {
        self.noted().findings.clone()
    }

    fn noted(&self) -> MutexGuard<'_, Noted> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whose connection it is; none when whoever had it is gone.
    async fn worker_at(&self, peer: SocketAddr) -> Option<usize> {
        let deadline = Instant::now() + LIMIT;
        while Instant::now() < deadline {
            let (peers, here) = (self.peers.clone(), self.address);
            match tokio::task::spawn_blocking(move || peers.whose(peer, here)).await {
                Ok(Whose::Workers(worker)) => return Some(worker),
                Ok(Whose::Unknown) => sleep(LOOK_EVERY).await,
                Ok(Whose::Nobodys) | Err(_) => return None,
            }
        }
        self.find(format!("it is not known whose a connection from {peer} was"));
        None
    }

    async fn serve(&self, mut stream: TcpStream, peer: SocketAddr) {
        let Some(worker) = self.worker_at(peer).await else { return };
        let _ = stream.set_nodelay(true);
        while let Some(received) = read_request(&mut stream).await {
            let began = Instant::now();
            let mut request = match self.read(&received, worker, began) {
                Ok(request) => request,
                Err(error) => return self.find(format!("{error:#}: {}", received.head)),
            };
            let whim = self.whim(request.delivery.attempt);
            let (response, ended) = answer(&mut stream, whim).await;
            (request.delivery.response, request.delivery.ended) = (response, ended);
            self.note(request);
            if matches!(response, Response::HungUp | Response::Unheard) {
                return;
            }
        }
    }

    fn read(&self, received: &Received, worker: usize, began: Instant) -> anyhow::Result<Request> {
        let header = |name: &str| received.header(name).with_context(|| format!("a request without {name}"));
        let name = header("galley-channel")?;
        let channel = *self.channels.get(name).context("another channel")?;
        let position: Position = header("galley-message-id")?.parse()?;
        let subscription = header("galley-subscription")?.to_owned();
        let id = header("webhook-id")?;
        let key = (subscription.clone(), channel, position);
        let before = self.noted().ids.entry(key).or_insert_with(|| id.to_owned()).clone();
        ensure!(before == id, "{name} {position} is {before} and {id}");
        let mark = mark_of(name, std::str::from_utf8(&received.body)?)?;
        let attempt = header("galley-attempt")?.parse()?;
        let delivery = Delivery { position, mark, attempt, worker, began, ended: began, response: Response::Unheard };
        Ok(Request { subscription, channel, delivery })
    }

    /// What it does with a request, given which attempt it is.
    fn whim(&self, attempt: u32) -> Whim {
        let random = &mut self.noted().random;
        let (die, late) = (random.random_range(0..1000), Duration::from_millis(random.random_range(LATE_MS)));
        match die {
            _ if attempt > MOST_FAILURES => Whim::Accept,
            0..REFUSED => Whim::Refuse,
            die if die < REFUSED + HUNG_UP => Whim::HangUp,
            die if die < REFUSED + HUNG_UP + LATE => Whim::AcceptLate(late),
            _ => Whim::Accept,
        }
    }

    fn note(&self, request: Request) {
        let none = || vec![Vec::new(); self.channels.len()];
        let mut noted = self.noted();
        noted.deliveries.entry(request.subscription).or_insert_with(none)[request.channel].push(request.delivery);
    }

    fn find(&self, finding: String) {
        let findings = &mut self.noted().findings;
        if findings.len() < MOST_FINDINGS {
            findings.push(finding);
        }
    }
}

/// What became of a request, and when: before the answer was on its way.
async fn answer(stream: &mut TcpStream, whim: Whim) -> (Response, Instant) {
    let late = if let Whim::AcceptLate(late) = whim { late } else { Duration::ZERO };
    // Nothing comes before the answer but the end of the connection: then nobody would hear it
    let gone = timeout(late, stream.read(&mut [0; 1])).await;
    let ended = Instant::now();
    if gone.is_ok() {
        return (Response::Unheard, ended);
    }
    let (bytes, response) = match whim {
        Whim::Accept | Whim::AcceptLate(_) => (ACCEPTED, Response::Accepted),
        Whim::Refuse => (OUT_OF_ORDER, Response::Refused),
        Whim::HangUp => return (Response::HungUp, ended),
    };
    let is_sent = stream.write_all(bytes).await.is_ok();
    (if is_sent { response } else { Response::Unheard }, ended)
}
