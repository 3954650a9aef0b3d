//! Who is logged in to the dashboard: the key behind each session, by the fingerprint of its cookie. A cookie is not stored, so
//! nobody who reads Redis can take part in a session.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{Redis, StoreResult, keys};

/// The key that somebody logged in with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DashboardSession {
    /// The id of the key.
    pub key: String,
    /// The hash of its secret: a key with another secret ends the session.
    pub hash: String,
}

impl Redis {
    /// Stores a session for `time`.
    ///
    /// # Errors
    /// Redis is unavailable or full.
    pub async fn start_session(
        &self,
        fingerprint: &str,
        session: &DashboardSession,
        time: Duration,
    ) -> StoreResult<()> {
        let json = serde_json::to_string(session).unwrap_or_default();
        let mut command = redis::cmd("SET");
        command.arg(keys::session(fingerprint)).arg(json).arg("PX").arg(time.as_millis().to_string());
        Ok(command.exec_async(&mut self.clone()).await?)
    }

    /// The session with that fingerprint, if it goes on.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn find_session(&self, fingerprint: &str) -> StoreResult<Option<DashboardSession>> {
        let json: Option<String> =
            redis::cmd("GET").arg(keys::session(fingerprint)).query_async(&mut self.clone()).await?;
        Ok(json.and_then(|json| serde_json::from_str(&json).ok()))
    }

    /// Ends a session.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn end_session(&self, fingerprint: &str) -> StoreResult<()> {
        Ok(redis::cmd("DEL").arg(keys::session(fingerprint)).exec_async(&mut self.clone()).await?)
    }
}
