//! The disk of a Redis, as a test sees it: what is synced, and whether there is room.

use std::{
    io::Write,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
    sync::LazyLock,
};

use tempfile::{NamedTempFile, TempDir};

use crate::AdjustableClock;

/// The disk of a Redis that is started with its variables: two 64-bit numbers, whether it is full and what is synced.
#[derive(Debug)]
pub struct WatchedDisk(NamedTempFile);

impl WatchedDisk {
    /// A disk with room.
    ///
    /// # Panics
    /// There is no room for a small file.
    #[must_use]
    pub fn new() -> Self {
        let mut file = NamedTempFile::new().expect("a temporary file");
        file.write_all(&[0; 16]).expect("a temporary file");
        Self(file)
    }

    /// Lets the disk be full, or have room again.
    ///
    /// # Panics
    /// The test's folder is gone.
    pub fn set_full(&self, is_full: bool) {
        self.0.as_file().write_all_at(&i64::from(is_full).to_ne_bytes(), 0).expect("a temporary file");
    }

    /// Bytes of the append-only file that are synced.
    ///
    /// # Panics
    /// The test's folder is gone.
    #[must_use]
    pub fn synced_bytes(&self) -> u64 {
        let mut bytes = [0; 8];
        self.0.as_file().read_exact_at(&mut bytes, 8).expect("a temporary file");
        u64::from_ne_bytes(bytes)
    }
}

impl Default for WatchedDisk {
    fn default() -> Self {
        Self::new()
    }
}

/// The environment of a server with that clock and that disk.
pub(crate) fn preloaded(clock: Option<&AdjustableClock>, disk: Option<&WatchedDisk>) -> Vec<(&'static str, String)> {
    let (mut libraries, mut variables) = (Vec::new(), Vec::new());
    if let Some(clock) = clock {
        let [(_, library), (name, value)] = clock.variables();
        libraries.push(library.to_owned());
        variables.push((name, value.to_owned()));
    }
    if let Some(disk) = disk {
        libraries.push(library().to_str().expect("a path of ours").to_owned());
        variables.push(("GALLEY_TEST_DISK", disk.0.path().to_str().expect("a path of ours").to_owned()));
    }
    if !libraries.is_empty() {
        variables.push(("LD_PRELOAD", libraries.join(":")));
    }
    variables
}

/// Compiled once per test process.
fn library() -> &'static Path {
    static FOLDER: LazyLock<(TempDir, PathBuf)> = LazyLock::new(|| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (source, library) = (folder.path().join("disk.c"), folder.path().join("disk.so"));
        std::fs::write(&source, include_str!("watched_disk.c")).expect("a temporary file");
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(&source).arg("-ldl");
        let status = compiler.status().expect("cc, which Rust needs to link");
        assert!(status.success(), "the library of the watched disk cannot be compiled");
        (folder, library)
    });
    &FOLDER.1
}
