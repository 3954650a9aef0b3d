//! What a file says and is in force: rules, commands. SIGHUP has the file read again; one that cannot be used changes nothing.

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

/// What is in force from now on. Whoever has taken it before keeps what was taken.
#[derive(Debug)]
pub struct Reloadable<T> {
    path: Option<PathBuf>,
    current: watch::Sender<Arc<T>>,
}

/// What came of reading the file again.
#[derive(Debug)]
pub enum ReloadOutcome<T> {
    /// This is in force now.
    Reloaded(Arc<T>),
    /// It cannot be used: what was in force stays.
    Invalid(ConfigFileError),
    /// There is no file.
    NoFile,
}

impl<T: Default> Reloadable<T> {
    /// Reads a file, if there is one.
    ///
    /// # Errors
    /// What `read` finds wrong with it.
    pub fn load(
        path: Option<&Path>,
        read: impl FnOnce(&Path) -> Result<T, ConfigFileError>,
    ) -> Result<Self, ConfigFileError> {
        let first = path.map(read).transpose()?.unwrap_or_default();
        Ok(Self { path: path.map(Path::to_path_buf), current: watch::Sender::new(Arc::new(first)) })
    }

    /// What is in force now.
    #[must_use]
    pub fn current(&self) -> Arc<T> {
        self.current.borrow().clone()
    }

    /// The same for those who want to hear of changes.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Arc<T>> {
        self.current.subscribe()
    }

    /// Reads the file again; `read` is told what is in force so far.
    pub fn reload(&self, read: impl FnOnce(&Path, &T) -> Result<T, ConfigFileError>) -> ReloadOutcome<T> {
        let Some(path) = &self.path else { return ReloadOutcome::NoFile };
        // Not under the lock of what is in force: reading takes its time
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

/// Calls `then` at each SIGHUP until `stop` is cancelled. The signal is heard, and does not end the process any more, from
/// this call on, not only once the future is polled.
pub fn on_sighup(stop: CancellationToken, mut then: impl FnMut()) -> impl Future<Output = ()> {
    let hang_up = signal(SignalKind::hangup());
    async move {
        let Ok(mut hang_up) = hang_up else {
            tracing::warn!("SIGHUP cannot be listened to");
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
        let in_force = Reloadable::<u8>::load(Some(path), |_| Ok(1)).expect("a file that can be used");
        let (taken, mut watch) = (in_force.current(), in_force.subscribe());
        assert!(matches!(in_force.reload(|_, _| Err(broken())), ReloadOutcome::Invalid(_)));
        assert_eq!((*in_force.current(), watch.has_changed().expect("it is there")), (1, false));
        assert!(matches!(in_force.reload(|_, before| Ok(before + 1)), ReloadOutcome::Reloaded(now) if *now == 2));
        assert_eq!((*taken, *in_force.current(), **watch.borrow_and_update()), (1, 2, 2));
    }

    #[test]
    fn without_a_file_nothing_is_in_force_and_nothing_is_read() {
        let in_force = Reloadable::<u8>::load(None, |_| unreachable!()).expect("nothing to be wrong with");
        assert!(matches!(in_force.reload(|_, _| unreachable!()), ReloadOutcome::NoFile));
        assert_eq!(*in_force.current(), 0);
    }
}
