//! What is known of the key or token behind a request, besides what it may do: when its rights may end early, and how much
//! it uses.

use std::sync::Arc;

use model::access::Access;

use super::key_watch::KeyWatch;
use crate::{key_usage::KeyMeter, tokens::TokenSigner};

/// The key or token behind a request. Empty where none is needed.
#[derive(Clone, Default)]
pub(crate) struct Credentials {
    /// What its sender may do, also of a request that is refused.
    pub(crate) sender: Option<Arc<Access>>,
    /// The key, or the key that made the token.
    pub(super) key: Option<KeyWatch>,
    /// What signed the token.
    pub(super) signer: Option<TokenSigner>,
    /// Counts what it uses, if that is limited.
    pub(crate) meter: Option<Arc<KeyMeter>>,
}

impl Credentials {
    /// Whether something may end the rights before they expire.
    pub(super) fn can_be_revoked(&self) -> bool {
        self.key.is_some() || self.signer.is_some()
    }

    /// Returns when the key is revoked, or what signed the token is withdrawn.
    pub(super) async fn revoked(self) {
        let key = async {
            match &self.key {
                Some(key) => key.gone().await,
                None => std::future::pending().await,
            }
        };
        let signer = async {
            match &self.signer {
                Some(signer) => signer.withdrawn().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = key => {}
            () = signer => {}
        }
    }
}
