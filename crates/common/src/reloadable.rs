//! The content of a file of rules or commands that is in use. SIGHUP reads the file again; a file with errors changes
//! nothing.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use tokio_util::sync::CancellationToken;

use crate::config_file::ConfigFileError;

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

    #[test]
    fn without_a_file_there_is_the_default_and_nothing_is_read() {
        let rules = Reloadable::<u8>::load(None, |_| unreachable!()).expect("nothing to be wrong with");
        assert!(matches!(rules.reload(|_, _| unreachable!()), ReloadOutcome::NoFile));
        assert_eq!(*rules.current(), 0);
    }
}
