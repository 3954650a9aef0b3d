//! Memory for the answers that the process is sending: pages of histories, lists, fetched jobs, batches.
//!
//! An answer counts until its client has taken all but the last piece, so clients that ask for much and read slowly cannot
//! take all memory. One that only reads is refused when the memory is used up, and so is a fetch before it claims jobs.
//! Answers about what was done are always sent.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use actix_web::{
    body::{BodySize, BoxBody, MessageBody},
    web::Bytes,
};

use crate::error::{ApiError, ErrorCode};

/// Smaller answers do not count: connections have buffers of that size anyway.
const MIN_COUNTED_BYTES: u64 = 16 << 10;
/// Bytes that go to the connection at a time. It takes more when the client has taken most of them.
const PIECE_BYTES: usize = 32 << 10;

/// The memory for the answers of the process.
pub(crate) struct AnswerBudget {
    max_bytes: usize,
    used_bytes: AtomicUsize,
}

impl AnswerBudget {
    pub(crate) fn new(max_bytes: usize) -> Self {
        Self { max_bytes, used_bytes: AtomicUsize::new(0) }
    }

    /// Whether an answer of unknown size may be made.
    ///
    /// # Errors
    /// Other answers use the memory.
    pub(crate) fn check_room(&self) -> Result<(), ApiError> {
        if self.used_bytes.load(Relaxed) < self.max_bytes { Ok(()) } else { Err(self.used_up()) }
    }

    fn used_up(&self) -> ApiError {
        let max = self.max_bytes;
        let message = format!("answers to other clients use the {max} bytes of gateway.answers_max_bytes");
        ApiError::new(ErrorCode::TooManyAnswers, message)
    }

    /// Counts an answer of that size; none if it is small.
    ///
    /// # Errors
    /// Other answers use the memory, and this one only reads.
    pub(crate) fn lease(self: &Arc<Self>, size: BodySize, only_reads: bool) -> Result<Option<AnswerLease>, ApiError> {
        let BodySize::Sized(bytes @ MIN_COUNTED_BYTES..) = size else { return Ok(None) };
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        // One may have any size if it is alone
        let fits = |used: usize| !only_reads || used == 0 || used.saturating_add(bytes) <= self.max_bytes;
        let grow = |used: usize| Some(used.saturating_add(bytes)).filter(|_| fits(used));
        self.used_bytes.fetch_update(Relaxed, Relaxed, grow).map_err(|_| self.used_up())?;
        Ok(Some(AnswerLease { budget: self.clone(), bytes }))
    }
}

/// What an answer uses, until it is dropped.
pub(crate) struct AnswerLease {
    budget: Arc<AnswerBudget>,
    bytes: usize,
}

impl Drop for AnswerLease {
    fn drop(&mut self) {
        self.budget.used_bytes.fetch_sub(self.bytes, Relaxed);
    }
}

/// An answer that is given to its connection piece by piece.
pub(crate) struct CountedBody {
    body: BoxBody,
    piece: Bytes,
    /// Bytes that were not given to the connection.
    left: u64,
    /// Counts until the last piece was given.
    lease: Option<AnswerLease>,
}

impl CountedBody {
    pub(crate) fn new(body: BoxBody, lease: AnswerLease) -> Self {
        let left = if let BodySize::Sized(bytes) = body.size() { bytes } else { u64::MAX };
        Self { body, piece: Bytes::new(), left, lease: Some(lease) }
    }
}

impl MessageBody for CountedBody {
    type Error = Box<dyn std::error::Error>;

    fn size(&self) -> BodySize {
        self.body.size()
    }

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, Self::Error>>> {
        if self.piece.is_empty() {
            match std::task::ready!(Pin::new(&mut self.body).poll_next(context)) {
                Some(Ok(bytes)) => self.piece = bytes,
                other => return Poll::Ready(other),
            }
        }
        let count = self.piece.len().min(PIECE_BYTES);
        self.left = self.left.saturating_sub(count as u64);
        if self.left > 0 {
            return Poll::Ready(Some(Ok(self.piece.split_to(count))));
        }
        // A client that has the answer may ask for the next at once. A copy: the piece itself holds all of the answer
        self.lease = None;
        Poll::Ready(Some(Ok(Bytes::copy_from_slice(&std::mem::take(&mut self.piece)))))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    const MAX_BYTES: usize = 100_000;

    #[tokio::test]
    async fn an_answer_counts_until_its_last_piece_is_given_to_the_connection() {
        let budget = Arc::new(AnswerBudget::new(MAX_BYTES));
        let bytes = Bytes::from(vec![b'x'; MAX_BYTES]);
        let lease = budget.lease(BodySize::Sized(bytes.len() as u64), true).unwrap_or(None).expect("it is counted");
        let mut body = CountedBody::new(BoxBody::new(bytes.clone()), lease);
        let mut taken = Vec::new();
        while taken.len() < MAX_BYTES {
            assert!(budget.check_room().is_err(), "{} bytes were given", taken.len());
            let piece = poll_fn(|context| Pin::new(&mut body).poll_next(context)).await;
            taken.extend_from_slice(&piece.expect("more").unwrap_or_else(|error| panic!("{error}")));
        }
        assert!(budget.check_room().is_ok());
        assert_eq!(taken, bytes);
    }
}
