//! Notices that a key is gone while a stream of it, or of a token that it made, is open.

use std::time::Duration;

use model::access::KeyHash;

use super::Auth;

/// How often a key is looked at without a reason: it may expire, and so may the secret that a rotation left valid.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// A key that something depends on.
#[derive(Clone)]
pub(crate) struct KeyWatch {
    auth: Auth,
    id: String,
    /// The hash of the secret in use; none for a key that made a token.
    hash: Option<KeyHash>,
}

impl KeyWatch {
    pub(super) fn new(auth: &Auth, id: &str, hash: Option<KeyHash>) -> Self {
        Self { auth: auth.clone(), id: id.to_owned(), hash }
    }

    /// Returns when the key is gone.
    pub(super) async fn gone(&self) {
        loop {
            let changed = self.auth.key_changes();
            if self.auth.is_gone(&self.id, self.hash.as_ref()).await {
                return;
            }
            let _ = tokio::time::timeout(LOOK_INTERVAL, changed).await;
        }
    }
}
