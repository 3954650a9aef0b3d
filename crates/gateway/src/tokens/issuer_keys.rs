//! The keys of the issuer, kept here and read again from time to time: from a file, or from a URL.
//!
//! A URL that is away changes nothing: the keys of the last good answer stay. A token with an unknown key makes the keys
//! be read again at once, but not more often than the settings allow: else forged tokens would turn every gateway against
//! the issuer. All requests that wait for the keys share one reading.

use std::{path::PathBuf, sync::Arc, time::Duration};

use common::reloadable::{FileWatch, count_reload};
use delivery::http::fetch::Fetcher;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::key_set::{IssuerKeySet, KeyOrigin};

/// The largest set of keys.
const MAX_DOCUMENT_BYTES: usize = 256 << 10;
/// The longest wait for an answer.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);

/// Where the keys are.
pub(super) enum KeySource {
    File(PathBuf),
    Url { url: String, fetcher: Box<Fetcher> },
}

/// What is known of the keys.
#[derive(Clone, Default)]
struct KnownKeys {
    /// None until they were read once.
    keys: Option<Arc<IssuerKeySet>>,
    /// The readings so far, good ones and bad ones.
    readings: u64,
    read_at: Option<Instant>,
}

/// The keys of the issuer. Clones share them.
#[derive(Clone)]
pub(super) struct IssuerKeys {
    known: Arc<watch::Sender<KnownKeys>>,
    wanted: Arc<Notify>,
    /// The shortest time between two readings that unknown keys ask for; none if the keys never change.
    pause: Option<Duration>,
}

impl IssuerKeys {
    /// Keys that never change.
    pub(super) fn fixed(keys: IssuerKeySet) -> Self {
        let known = KnownKeys { keys: Some(Arc::new(keys)), ..KnownKeys::default() };
        Self { known: Arc::new(watch::Sender::new(known)), wanted: Arc::default(), pause: None }
    }

    /// Reads the keys now, and again until the token is cancelled: from a URL after each interval, from a file when it is
    /// found to have changed, which is looked for after each interval.
    ///
    /// # Errors
    /// A file that cannot be read. A URL may be away: then there are no keys yet.
    pub(super) fn start(
        source: KeySource,
        interval: Duration,
        pause: Duration,
        stop: CancellationToken,
    ) -> Result<Self, String> {
        let known = Arc::new(watch::Sender::new(KnownKeys::default()));
        let keys = Self { known, wanted: Arc::default(), pause: Some(pause) };
        let file = match &source {
            KeySource::File(path) => Some(path.clone()),
            KeySource::Url { .. } => None,
        };
        // Before the file is read
        let watch = FileWatch::new(file, interval);
        if let KeySource::File(path) = &source {
            keys.record(Ok(read_file(path)?));
        }
        let reader = keys.clone();
        tokio::spawn(async move {
            let reading = reader.read_repeatedly(&source, interval, watch);
            stop.run_until_cancelled(reading).await;
        });
        Ok(keys)
    }

    /// The keys as they are known; none if they could not be read yet.
    pub(super) fn current(&self) -> Option<Arc<IssuerKeySet>> {
        self.known.borrow().keys.clone()
    }

    /// Tells of every reading that brought other keys, or may have.
    pub(super) fn changes(&self) -> impl Future<Output = ()> + use<> {
        let mut known = self.known.subscribe();
        async move {
            if known.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// The keys after another reading, unless the last one was a moment ago.
    pub(super) async fn read_again(&self) -> Option<Arc<IssuerKeySet>> {
        let mut known = self.known.subscribe();
        if !self.is_fresh(&known.borrow_and_update()) {
            self.wanted.notify_one();
            let limit = FETCH_TIMEOUT + Duration::from_secs(1);
            let _ = tokio::time::timeout(limit, known.changed()).await;
        }
        self.current()
    }

    /// Whether the keys were read a moment ago, or never change.
    fn is_fresh(&self, known: &KnownKeys) -> bool {
        self.pause.is_none_or(|pause| known.read_at.is_some_and(|at| at.elapsed() < pause))
    }

    async fn read_repeatedly(&self, source: &KeySource, interval: Duration, mut file: FileWatch) {
        let is_url = matches!(source, KeySource::Url { .. });
        let mut is_first = is_url;
        loop {
            if !is_first {
                tokio::select! {
                    () = tokio::time::sleep(interval), if is_url => {}
                    () = file.changed() => {}
                    () = self.wanted.notified() => {
                        if self.is_fresh(&self.known.borrow()) {
                            continue;
                        }
                    }
                }
            }
            is_first = false;
            let read = match source {
                KeySource::File(path) => {
                    let read = read_file(path);
                    count_reload("auth.jwt.jwks_file", read.is_ok());
                    read
                }
                KeySource::Url { url, fetcher } => fetch(fetcher, url).await,
            };
            self.record(read);
        }
    }

    fn record(&self, read: Result<IssuerKeySet, String>) {
        if let Err(problem) = &read {
            metrics::counter!("galley_token_keys_failed_total").increment(1);
            tracing::warn!(event = "token_keys.unavailable", problem, "the keys of tokens cannot be read");
        }
        self.known.send_modify(|known| {
            known.readings += 1;
            known.read_at = Some(Instant::now());
            if let Ok(keys) = read {
                known.keys = Some(Arc::new(keys));
            }
        });
    }
}

fn read_file(path: &PathBuf) -> Result<IssuerKeySet, String> {
    let length = std::fs::metadata(path).map_err(|error| error.to_string())?.len();
    if length > MAX_DOCUMENT_BYTES as u64 {
        return Err(format!("it has {length} bytes, more than {MAX_DOCUMENT_BYTES}"));
    }
    let json = std::fs::read(path).map_err(|error| error.to_string())?;
    IssuerKeySet::parse(&json, KeyOrigin::File)
}

async fn fetch(fetcher: &Fetcher, url: &str) -> Result<IssuerKeySet, String> {
    let json = fetcher.get(url, MAX_DOCUMENT_BYTES, FETCH_TIMEOUT).await?;
    IssuerKeySet::parse(&json, KeyOrigin::Url)
}
