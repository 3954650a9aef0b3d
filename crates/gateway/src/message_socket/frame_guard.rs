//! Refuses frames that are too long when their head comes. The WebSocket library looks at the length of a frame when all
//! of it is there, and would buffer a frame of any length until then.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use actix_web::{dev::Payload, error::PayloadError, web::Bytes};
use futures_util::Stream;

use super::frame_heads::FrameHeads;

/// The bytes of a connection, as long as no frame is too long.
pub(crate) struct FrameGuard {
    payload: Payload,
    max_bytes: u64,
    heads: FrameHeads,
}

impl FrameGuard {
    pub(crate) fn new(payload: Payload, max_bytes: usize) -> Self {
        Self { payload, max_bytes: max_bytes as u64, heads: FrameHeads::default() }
    }
}

impl Stream for FrameGuard {
    type Item = Result<Bytes, PayloadError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = Pin::new(&mut self.payload).poll_next(cx);
        if let Poll::Ready(Some(Ok(bytes))) = &next {
            let longest = self.heads.longest_frame(bytes);
            if longest > self.max_bytes {
                return Poll::Ready(Some(Err(PayloadError::Overflow)));
            }
        }
        next
    }
}
