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

use crate::config_file::FileError;

/// What is in force from now on. Whoever has taken it before keeps what was taken.
#[derive(Debug)]
pub struct InForce<T> {
    path: Option<PathBuf>,
    now: watch::Sender<Arc<T>>,
}

/// What came of reading the file again.
#[derive(Debug)]
pub enum ReadAgain<T> {
    /// This is in force now.
    Changed(Arc<T>),
    /// It cannot be used: what was in force stays.
    Unusable(FileError),
    /// There is no file.
    NoFile,
}

impl<T: Default> InForce<T> {
    /// Reads a file, if there is one.
    ///
    /// # Errors
    /// What `read` finds wrong with it.
    pub fn load(path: Option<&Path>, read: impl FnOnce(&Path) -> Result<T, FileError>) -> Result<Self, FileError> {
        let first = path.map(read).transpose()?.unwrap_or_default();
        Ok(Self { path: path.map(Path::to_path_buf), now: watch::Sender::new(Arc::new(first)) })
    }

    /// What is in force now.
    #[must_use]
    pub fn now(&self) -> Arc<T> {
        self.now.borrow().clone()
    }

    /// The same for those who want to hear of changes.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Arc<T>> {
        self.now.subscribe()
    }

    /// Reads the file again; `read` is told what is in force so far.
    pub fn read_again(&self, read: impl FnOnce(&Path, &T) -> Result<T, FileError>) -> ReadAgain<T> {
        let Some(path) = &self.path else { return ReadAgain::NoFile };
        // Not under the lock of what is in force: reading takes its time
        match read(path, &self.now()) {
            Ok(read) => {
                let read = Arc::new(read);
                self.now.send_replace(read.clone());
                ReadAgain::Changed(read)
            }
            Err(error) => ReadAgain::Unusable(error),
        }
    }
}

/// Calls `then` at each SIGHUP until `stop` is cancelled. The signal is heard, and does not end the process any more, from
/// this call on, not only once the future is polled.
pub fn on_hang_up(stop: CancellationToken, mut then: impl FnMut()) -> impl Future<Output = ()> {
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

    fn broken() -> FileError {
        config_file::load(Path::new("/no/such.toml"), "rules", |_, (): ()| ()).expect_err("there is no such file")
    }

    #[test]
    fn what_cannot_be_used_changes_nothing_and_what_was_taken_stays() {
        let path = Path::new("a.toml");
        assert!(InForce::<u8>::load(Some(path), |_| Err(broken())).is_err());
        let in_force = InForce::<u8>::load(Some(path), |_| Ok(1)).expect("a file that can be used");
        let (taken, mut watch) = (in_force.now(), in_force.watch());
        assert!(matches!(in_force.read_again(|_, _| Err(broken())), ReadAgain::Unusable(_)));
        assert_eq!((*in_force.now(), watch.has_changed().expect("it is there")), (1, false));
        assert!(matches!(in_force.read_again(|_, before| Ok(before + 1)), ReadAgain::Changed(now) if *now == 2));
        assert_eq!((*taken, *in_force.now(), **watch.borrow_and_update()), (1, 2, 2));
    }

    #[test]
    fn without_a_file_nothing_is_in_force_and_nothing_is_read() {
        let in_force = InForce::<u8>::load(None, |_| unreachable!()).expect("nothing to be wrong with");
        assert!(matches!(in_force.read_again(|_, _| unreachable!()), ReadAgain::NoFile));
        assert_eq!(*in_force.now(), 0);
    }
}
