//! Sessions of people who use the dashboard: a key that was given once stands behind a cookie. The cookie works for pages
//! only, and ends with the key.

use std::sync::Arc;

use actix_web::http::header::HeaderMap;
use common::time::Millis;
use model::access::{Access, KeyHash, PresentedKey};
use store::sessions::DashboardSession;

use super::{Auth, Credentials, unknown_key};
use crate::{
    dashboard::session::SessionCookie,
    error::{ApiError, ErrorCode},
};

impl Auth {
    /// Starts a session with a key.
    ///
    /// # Errors
    /// The key is not valid, or Redis is unavailable.
    pub(crate) async fn log_in(&self, key: &str) -> Result<SessionCookie, ApiError> {
        let presented = PresentedKey::parse(key.trim()).ok_or_else(unknown_key)?;
        let hash = presented.hash();
        self.check_key(presented.id(), &hash, store::local_now()).await?;
        let cookie = SessionCookie::generate();
        let session = DashboardSession { key: presented.id().to_owned(), hash: hash.to_string() };
        self.0.redis.start_session(&cookie.fingerprint(), &session, self.0.session_time).await?;
        Ok(cookie)
    }

    /// Ends a session.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub(crate) async fn log_out(&self, cookie: &SessionCookie) -> Result<(), ApiError> {
        Ok(self.0.redis.end_session(&cookie.fingerprint()).await?)
    }

    /// The access of the key behind a session.
    pub(super) async fn check_session(
        &self,
        headers: &HeaderMap,
        now: Millis,
    ) -> Result<(Arc<Access>, Credentials), ApiError> {
        let Some(cookie) = SessionCookie::of(headers) else { return Err(login_required()) };
        let session = self.0.redis.find_session(&cookie.fingerprint()).await?.ok_or_else(login_required)?;
        let hash: KeyHash = session.hash.parse().map_err(|_| login_required())?;
        self.check_secret(&session.key, hash, now).await
    }
}

fn login_required() -> ApiError {
    ApiError::new(ErrorCode::KeyRequired, "this page needs a key: log in, or send it as Authorization: Bearer KEY")
}
