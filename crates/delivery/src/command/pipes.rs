//! A program's standard input and output. The worker writes and reads concurrently, so neither side blocks the other,
//! however much data there is.

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::{ChildStdin, ChildStdout},
};
use tokio_util::sync::CancellationToken;

/// Bytes of one read; also the size of a pipe on Linux.
pub(super) const CHUNK_BYTES: usize = 64 << 10;

/// Writes the whole input and closes the pipe. The program need not read it.
pub(super) async fn write_stdin(mut stdin: ChildStdin, input: Vec<u8>) {
    if let Err(error) = stdin.write_all(&input).await {
        tracing::debug!(%error, "a program did not read all of its input");
    }
}

/// Reads until the end and passes on each chunk. An error also counts as the end.
pub(super) async fn read_all(mut pipe: impl AsyncRead + Unpin, mut take: impl FnMut(&[u8])) {
    let mut chunk = Vec::with_capacity(CHUNK_BYTES);
    loop {
        chunk.clear();
        match pipe.read_buf(&mut chunk).await {
            Ok(0) => return,
            Ok(_) => take(&chunk),
            Err(error) => {
                tracing::debug!(%error, "cannot read a program's output to its end");
                return;
            }
        }
    }
}

/// A program's standard output, up to a limit.
pub(super) struct StdoutBuffer {
    bytes: Vec<u8>,
    limit: usize,
    is_too_large: bool,
}

impl StdoutBuffer {
    pub(super) fn new(limit: usize) -> Self {
        Self { bytes: Vec::new(), limit, is_too_large: false }
    }

    /// Reads to the end, if there is a pipe. Beyond the limit it cancels `too_large` and discards: the program must
    /// not block on writing, so that it can react to the stop.
    pub(super) async fn read(&mut self, stdout: Option<ChildStdout>, too_large: &CancellationToken) {
        let Some(stdout) = stdout else { return };
        read_all(stdout, |chunk| {
            if self.is_too_large {
                return;
            }
            if self.bytes.len() + chunk.len() > self.limit {
                self.is_too_large = true;
                self.bytes = Vec::new();
                too_large.cancel();
                return;
            }
            self.bytes.extend_from_slice(chunk);
        })
        .await;
    }

    /// All of the output, or the limit that it exceeded.
    pub(super) fn finish(self) -> Result<Vec<u8>, usize> {
        if self.is_too_large { Err(self.limit) } else { Ok(self.bytes) }
    }
}
