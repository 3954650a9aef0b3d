//! How long a stream may stay open, and how long a request may wait: until the token or the key of its client expires, is
//! revoked, or loses the key that signed it. A stream then ends with a reason, and what waits is refused.

use std::{
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use actix_web::{HttpMessage, HttpRequest};
use common::{json::ObjectWriter, time::Millis};
use futures_util::future::{Either, select};

use super::{Caller, Credentials};
use crate::{
    error::{ApiError, ErrorCode},
    key_usage::StreamPermit,
};

/// The longest that a timer runs: clocks may be set, and computers sleep.
const MAX_SLEEP: Duration = Duration::from_secs(30);

/// Why the rights of a client end while its stream is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AccessEnd {
    Expired,
    Revoked,
}

/// A client's right to a stream.
pub(crate) struct StreamSession {
    _permit: StreamPermit,
    rights: AccessWatch,
}

/// Notices when the rights of a client end. None if they have no end.
struct AccessWatch(Option<Pin<Box<dyn Future<Output = AccessEnd>>>>);

impl AccessWatch {
    fn of(request: &HttpRequest) -> Result<Self, ApiError> {
        let expires_at = Caller::of(request)?.expires_at;
        let credentials = request.extensions().get::<Credentials>().cloned().unwrap_or_default();
        if expires_at.is_none() && !credentials.can_be_revoked() {
            return Ok(Self(None));
        }
        let end = async move {
            let expired = std::pin::pin!(expired(expires_at));
            let revoked = std::pin::pin!(credentials.revoked());
            match select(expired, revoked).await {
                Either::Left(_) => AccessEnd::Expired,
                Either::Right(_) => AccessEnd::Revoked,
            }
        };
        Ok(Self(Some(Box::pin(end))))
    }

    fn poll_ended(&mut self, cx: &mut Context<'_>) -> Poll<AccessEnd> {
        match &mut self.0 {
            Some(end) => end.as_mut().poll(cx),
            None => Poll::Pending,
        }
    }
}

/// Waits for something that may take a minute, unless the rights of the client end before: it was admitted when it asked, and
/// must not get what comes later.
pub(crate) async fn while_admitted<T>(
    request: &HttpRequest,
    waiting: impl Future<Output = Result<T, ApiError>>,
) -> Result<T, ApiError> {
    let mut rights = AccessWatch::of(request)?;
    match select(std::pin::pin!(waiting), poll_fn(|cx| rights.poll_ended(cx))).await {
        Either::Left((done, _)) => done,
        Either::Right((why, _)) => Err(ApiError::new(ErrorCode::InvalidKey, why.message())),
    }
}

impl StreamSession {
    /// The session of a request that opens a stream.
    ///
    /// # Errors
    /// Its key has as many streams as it may have.
    pub(crate) fn open(request: &HttpRequest) -> Result<Self, ApiError> {
        let meter = request.extensions().get::<Credentials>().and_then(|known| known.meter.clone());
        let permit = StreamPermit::acquire(meter.as_ref())?;
        Ok(Self { _permit: permit, rights: AccessWatch::of(request)? })
    }

    /// A session that never ends.
    #[cfg(test)]
    pub(crate) fn endless() -> Self {
        Self { _permit: StreamPermit::none(), rights: AccessWatch(None) }
    }

    /// A session that ends at once.
    #[cfg(test)]
    pub(crate) fn ended_already(why: AccessEnd) -> Self {
        Self { _permit: StreamPermit::none(), rights: AccessWatch(Some(Box::pin(std::future::ready(why)))) }
    }

    /// Returns when the client's rights end. A call that is dropped loses nothing; after it has returned, do not call it.
    pub(crate) async fn ended(&mut self) -> AccessEnd {
        poll_fn(|cx| self.poll_ended(cx)).await
    }

    /// Ready when the client's rights end; not to be polled after that.
    pub(crate) fn poll_ended(&mut self, cx: &mut Context<'_>) -> Poll<AccessEnd> {
        self.rights.poll_ended(cx)
    }
}

impl AccessEnd {
    /// The word for programs.
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Revoked => "revoked",
        }
    }

    /// The text for people.
    pub(crate) fn message(self) -> &'static str {
        match self {
            Self::Expired => "the token or key has expired: connect again with a new one",
            Self::Revoked => "the token or key was revoked",
        }
    }

    /// The members that say why, in an event or a frame.
    pub(crate) fn write(self, json: &mut ObjectWriter) {
        json.text("reason", self.reason()).text("message", self.message());
    }
}

/// Returns at that time, by the clock of this machine.
async fn expired(at: Option<Millis>) {
    let Some(at) = at else { return std::future::pending().await };
    loop {
        let left = at.saturating_sub(store::local_now());
        let Some(left) = u64::try_from(left).ok().filter(|left| *left > 0) else { return };
        tokio::time::sleep(Duration::from_millis(left).min(MAX_SLEEP)).await;
    }
}
