//! Content of files that is in use. SIGHUP reads a file of rules or commands again; files of keys and certificates are
//! looked at again and again. A file with errors changes nothing.

use std::{
    fmt::Display,
    fs,
    hash::{BuildHasher, RandomState},
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use tokio_util::sync::CancellationToken;

use crate::config_file::ConfigFileError;

/// The most bytes of a file that are looked at: more than any file that is used may have.
const MAX_WATCHED_BYTES: u64 = (1 << 20) + 1;

/// The content in use. A copy taken before a reload stays as it is.
#[derive(Debug)]
pub struct Reloadable<T> {
    path: Option<PathBuf>,
    current: watch::Sender<Arc<T>>,
}

/// The result of reading the file again.
#[derive(Debug)]
pub enum ReloadOutcome<T> {
    /// The new content is in use.
    Reloaded(Arc<T>),
    /// The file cannot be used: the old content stays in use.
    Invalid(ConfigFileError),
    /// There is no file.
    NoFile,
}

impl<T: Default> Reloadable<T> {
    /// Reads a file, if there is one.
    ///
    /// # Errors
    /// The problems that `read` finds.
    pub fn load(
        path: Option<&Path>,
        read: impl FnOnce(&Path) -> Result<T, ConfigFileError>,
    ) -> Result<Self, ConfigFileError> {
        let first = path.map(read).transpose()?.unwrap_or_default();
        Ok(Self { path: path.map(Path::to_path_buf), current: watch::Sender::new(Arc::new(first)) })
    }

    /// Puts other content in use, until the next reload.
    pub fn replace(&self, content: T) {
        self.current.send_replace(Arc::new(content));
    }

    /// The content in use.
    #[must_use]
    pub fn current(&self) -> Arc<T> {
        self.current.borrow().clone()
    }

    /// The content in use, with a notification of each change.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Arc<T>> {
        self.current.subscribe()
    }

    /// Reads the file again. `read` gets the content in use so far.
    pub fn reload(&self, read: impl FnOnce(&Path, &T) -> Result<T, ConfigFileError>) -> ReloadOutcome<T> {
        let Some(path) = &self.path else { return ReloadOutcome::NoFile };
        // Without the lock on the content in use: reading takes time
        match read(path, &self.current()) {
            Ok(read) => {
                let read = Arc::new(read);
                self.current.send_replace(read.clone());
                ReloadOutcome::Reloaded(read)
            }
            Err(error) => ReloadOutcome::Invalid(error),
        }
    }
}

/// Files that are looked at again and again. By their content: a mounted Secret is exchanged as a whole, with times that may
/// be older.
#[derive(Debug)]
pub struct FileWatch {
    paths: Vec<PathBuf>,
    interval: Duration,
    hasher: RandomState,
    /// What was told last.
    told: u64,
    /// What the last look saw.
    seen: u64,
}

impl FileWatch {
    /// Make it before the files are read: what changes from now on is seen.
    #[must_use]
    pub fn new(paths: impl IntoIterator<Item = PathBuf>, interval: Duration) -> Self {
        let (paths, hasher) = (paths.into_iter().collect::<Vec<_>>(), RandomState::new());
        let seen = fingerprint(&paths, &hasher);
        Self { paths, interval, hasher, told: seen, seen }
    }

    /// Returns when the files hold something else than before, or one cannot be read any more, and two looks in a row saw the
    /// same: a file that is being written may hold less than it will, such as a key without its limits. Without files it
    /// never does. What was not seen when this is dropped is seen by the next call.
    pub async fn changed(&mut self) {
        if self.paths.is_empty() {
            std::future::pending::<()>().await;
        }
        loop {
            tokio::time::sleep(self.interval).await;
            if self.look().await {
                return;
            }
        }
    }

    /// Whether there is something to tell.
    async fn look(&mut self) -> bool {
        let (paths, hasher) = (self.paths.clone(), self.hasher.clone());
        let Ok(now) = tokio::task::spawn_blocking(move || fingerprint(&paths, &hasher)).await else { return false };
        let is_whole = std::mem::replace(&mut self.seen, now) == now;
        is_whole && std::mem::replace(&mut self.told, now) != now
    }
}

/// What tells contents apart, without keeping secrets. Of a file that is too long to be used the beginning is enough.
fn fingerprint(paths: &[PathBuf], hasher: &RandomState) -> u64 {
    let read = |path: &PathBuf| -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        fs::File::open(path)?.take(MAX_WATCHED_BYTES).read_to_end(&mut content)?;
        Ok(content)
    };
    let contents: Vec<Result<Vec<u8>, io::ErrorKind>> =
        paths.iter().map(|path| read(path).map_err(|error| error.kind())).collect();
    hasher.hash_one(contents)
}

/// Counts a change of files that was used or refused. `files` is the setting that names them.
pub fn count_reload(files: &'static str, is_used: bool) {
    let result = if is_used { "ok" } else { "failed" };
    metrics::counter!("galley_file_reloads_total", "files" => files, "result" => result).increment(1);
}

/// The same, and says it in the log. An error shows nothing of a secret.
pub fn record_reload(files: &'static str, result: Result<(), impl Display>) {
    count_reload(files, result.is_ok());
    match result {
        Ok(()) => tracing::info!(event = "files.reloaded", files, "files that changed are in use"),
        Err(error) => {
            tracing::warn!(event = "files.reload_failed", files, %error, "what was in use before stays in use");
        }
    }
}

/// Calls `then` at each SIGHUP until `stop` is cancelled. From this call on, before the future is polled, the signal no
/// longer ends the process.
pub fn on_sighup(stop: CancellationToken, mut then: impl FnMut()) -> impl Future<Output = ()> {
    let hang_up = signal(SignalKind::hangup());
    async move {
        let Ok(mut hang_up) = hang_up else {
            tracing::warn!("cannot receive SIGHUP");
            return;
        };
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = hang_up.recv() => then(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config_file;

    fn broken() -> ConfigFileError {
        config_file::load(Path::new("/no/such.toml"), "rules", |_, (): ()| ()).expect_err("there is no such file")
    }

    #[test]
    fn what_cannot_be_used_changes_nothing_and_what_was_taken_stays() {
        let path = Path::new("a.toml");
        assert!(Reloadable::<u8>::load(Some(path), |_| Err(broken())).is_err());
        let rules = Reloadable::<u8>::load(Some(path), |_| Ok(1)).expect("a file that can be used");
        let (taken, mut watch) = (rules.current(), rules.subscribe());
        assert!(matches!(rules.reload(|_, _| Err(broken())), ReloadOutcome::Invalid(_)));
        assert_eq!((*rules.current(), watch.has_changed().expect("it is there")), (1, false));
        assert!(matches!(rules.reload(|_, before| Ok(before + 1)), ReloadOutcome::Reloaded(now) if *now == 2));
        assert_eq!((*taken, *rules.current(), **watch.borrow_and_update()), (1, 2, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn files_that_change_appear_and_disappear_are_seen_once_each() {
        let folder = tempfile::tempdir().expect("a folder");
        let paths = ["a", "b"].map(|name| folder.path().join(name));
        fs::write(&paths[0], "one").expect("a file");
        let mut watch = FileWatch::new(paths.clone(), Duration::from_secs(1));
        let hour = Duration::from_hours(1);
        let mut sees = async || tokio::time::timeout(hour, watch.changed()).await.is_ok();
        assert!(!sees().await, "nothing changed");
        fs::write(&paths[0], "two").expect("a file");
        assert!(sees().await && !sees().await);
        fs::write(&paths[1], "").expect("a file");
        assert!(sees().await && !sees().await, "an empty file is not the same as none");
        fs::write(&paths[0], "tw").expect("a file");
        fs::write(&paths[1], "o").expect("a file");
        assert!(sees().await && !sees().await, "what moved from one to the other");
        fs::remove_file(&paths[0]).expect("a file");
        assert!(sees().await && !sees().await);
    }

    #[tokio::test]
    async fn a_file_that_is_being_written_is_told_when_it_is_whole() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("keys.toml");
        fs::write(&path, "a whole file").expect("a file");
        let mut watch = FileWatch::new([path.clone()], Duration::from_secs(1));
        for part in ["", "scopes", "scopes and limits"] {
            fs::write(&path, part).expect("a file");
            assert!(!watch.look().await, "{part}: more may come");
        }
        assert!(watch.look().await && !watch.look().await);
        // What was replaced and is back was never gone
        fs::write(&path, "").expect("a file");
        assert!(!watch.look().await);
        fs::write(&path, "scopes and limits").expect("a file");
        assert!(!watch.look().await && !watch.look().await);
    }

    #[test]
    fn without_a_file_there_is_the_default_and_nothing_is_read() {
        let rules = Reloadable::<u8>::load(None, |_| unreachable!()).expect("nothing to be wrong with");
        assert!(matches!(rules.reload(|_, _| unreachable!()), ReloadOutcome::NoFile));
        assert_eq!(*rules.current(), 0);
    }
}
