//! A clock that a test can set: that of a Redis server or of a process of Galley's.

use std::{
    io::Write,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
    sync::LazyLock,
    time::Duration,
};

use tempfile::{NamedTempFile, TempDir};

/// The wall clock of a process that is started with its variables. The monotonic clock of the process stays as it is.
#[derive(Debug)]
pub struct AdjustableClock(NamedTempFile);

impl AdjustableClock {
    /// A clock that is right.
    ///
    /// # Panics
    /// There is no C compiler, which Rust itself needs to link.
    #[must_use]
    pub fn new() -> Self {
        let mut file = NamedTempFile::new().expect("a temporary file");
        file.write_all(&0_i64.to_ne_bytes()).expect("a temporary file");
        Self(file)
    }

    /// Sets the clock so that it is ahead of the right time.
    ///
    /// # Panics
    /// The test's folder is gone.
    pub fn set_ahead(&self, by: Duration) {
        self.set(i64::try_from(by.as_millis()).expect("a short time"));
    }

    /// Sets the clock so that it is behind the right time.
    ///
    /// # Panics
    /// The test's folder is gone.
    pub fn set_behind(&self, by: Duration) {
        self.set(-i64::try_from(by.as_millis()).expect("a short time"));
    }

    fn set(&self, ahead_ms: i64) {
        self.0.as_file().write_all_at(&ahead_ms.to_ne_bytes(), 0).expect("a temporary file");
    }

    /// The environment of a process that has this clock.
    ///
    /// # Panics
    /// There is no C compiler.
    #[must_use]
    pub fn variables(&self) -> [(&'static str, &str); 2] {
        let text = |path: &'static Path| path.to_str().expect("a path of ours");
        [("LD_PRELOAD", text(library())), ("GALLEY_TEST_CLOCK", self.0.path().to_str().expect("a path of ours"))]
    }
}

impl Default for AdjustableClock {
    fn default() -> Self {
        Self::new()
    }
}

/// The library to preload, compiled once per test process.
fn library() -> &'static Path {
    static FOLDER: LazyLock<(TempDir, PathBuf)> = LazyLock::new(|| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (source, library) = (folder.path().join("clock.c"), folder.path().join("clock.so"));
        std::fs::write(&source, include_str!("adjustable_clock.c")).expect("a temporary file");
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(&source);
        let status = compiler.status().expect("cc, which Rust needs to link");
        assert!(status.success(), "the library of the adjustable clock cannot be compiled");
        (folder, library)
    });
    &FOLDER.1
}
