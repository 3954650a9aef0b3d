//! Whether this process has the keys of what is stored. Redis has a short text for each key that ever sealed something
//! there, sealed with that key: a process with another key of that name, or without one of them, does not start.

use std::collections::HashMap;

use redis::aio::ConnectionLike;

use super::{OpenError, Sealer};
use crate::{StoreError, StoreResult, connection::server::ServerError, keys};

/// What is sealed for each key.
const TEXT: &str = "galley";

impl Sealer {
    /// Checks the keys of this process with those that sealed what is stored, and notes its own.
    ///
    /// # Errors
    /// This process could not read everything. Or Redis is unavailable.
    pub(crate) async fn check_keys(&self, connection: &mut impl ConnectionLike) -> Result<(), ServerError> {
        let known = read_known(connection).await?;
        self.check_known(&known, connection).await
    }

    /// The same with the stored keys as they were just read.
    pub(crate) async fn check_known(
        &self,
        known: &HashMap<String, String>,
        connection: &mut impl ConnectionLike,
    ) -> Result<(), ServerError> {
        for (id, stored) in known {
            self.check_one(id, stored).map_err(ServerError::Unsuitable)?;
        }
        let Some(ring) = self.ring().filter(|ring| !known.contains_key(ring.current())) else { return Ok(()) };
        let id = ring.current();
        let mut command = redis::cmd("HSETNX");
        command.arg(keys::ENCRYPTION_KEYS).arg(id).arg(&*self.seal(&["key", id], TEXT));
        command.exec_async(connection).await.map_err(StoreError::from)?;
        // Another process may have noted another key of that name at this moment
        let stored = read_known(connection).await?.remove(id).unwrap_or_default();
        self.check_one(id, &stored).map_err(ServerError::Unsuitable)
    }

    fn check_one(&self, id: &str, stored: &str) -> Result<(), String> {
        let what = format!("it holds data that is sealed with key {id:?}");
        match self.ring() {
            None => return Err(format!("{what}, and encryption.keys_file is empty: name the file with that key")),
            Some(ring) if !ring.has(id) => {
                return Err(format!(
                    "{what}, which encryption.keys_file lacks: add it. If nothing sealed with it is left: \
                     HDEL {} {id} (docs/security.md#encryption-at-rest)",
                    keys::ENCRYPTION_KEYS
                ));
            }
            Some(_) => {}
        }
        match self.open(&["key", id], stored.to_owned()) {
            Ok(text) if text == TEXT && stored != TEXT => Ok(()),
            Ok(_) | Err(StoreError::Sealed(OpenError::Refused(_) | OpenError::Malformed | OpenError::Plain)) => {
                Err(format!("{what}, and encryption.keys_file has another key of that name: put the right one there"))
            }
            Err(error) => Err(error.to_string()),
        }
    }
}

async fn read_known(connection: &mut impl ConnectionLike) -> StoreResult<HashMap<String, String>> {
    Ok(redis::cmd("HGETALL").arg(keys::ENCRYPTION_KEYS).query_async(connection).await?)
}
