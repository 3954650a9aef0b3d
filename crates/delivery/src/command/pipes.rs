//! A program's standard input and output. The worker writes and reads at the same time: neither side waits for the other
//! to finish first, however much there is.

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::{ChildStdin, ChildStdout},
};
use tokio_util::sync::CancellationToken;

/// Read at a time; a pipe holds as much on Linux.
pub(super) const CHUNK_BYTES: usize = 64 << 10;

/// Writes all of the input and closes it. Whether the program reads it is its own business.
pub(super) async fn write_stdin(mut stdin: ChildStdin, input: Vec<u8>) {
    if let Err(error) = stdin.write_all(&input).await {
        tracing::debug!(%error, "a program has not read all of its input");
    }
}

/// Reads until the end, handing on what comes. An error is an end too.
pub(super) async fn read_all(mut pipe: impl AsyncRead + Unpin, mut take: impl FnMut(&[u8])) {
    let mut chunk = Vec::with_capacity(CHUNK_BYTES);
    loop {
        chunk.clear();
        match pipe.read_buf(&mut chunk).await {
            Ok(0) => return,
            Ok(_) => take(&chunk),
            Err(error) => {
                tracing::debug!(%error, "a program's output cannot be read to its end");
                return;
            }
        }
    }
}

/// What a program wrote on its standard output, up to a limit.
pub(super) struct StdoutBuffer {
    bytes: Vec<u8>,
    limit: usize,
    is_too_large: bool,
}

impl StdoutBuffer {
    pub(super) fn new(limit: usize) -> Self {
        Self { bytes: Vec::new(), limit, is_too_large: false }
    }

    /// Reads to the end, if there is anything to read. What is beyond the limit is dropped, after `too_large` was
    /// cancelled: the program shall be able to hear that it has to stop instead of being stuck in writing.
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

    /// All of it, or the limit that it went beyond.
    pub(super) fn finish(self) -> Result<Vec<u8>, usize> {
        if self.is_too_large { Err(self.limit) } else { Ok(self.bytes) }
    }
}
