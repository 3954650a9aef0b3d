//! Dead letters: jobs that used up their attempts and are listed for people.

use super::{Jobs, LocatedJob};
use crate::{StoreResult, keys::QueueKeys};
use common::{id::JobId, name::QueueName};

impl Jobs {
    /// Deletes a dead letter; false if there is none.
    ///
    /// # Errors
    /// Redis is unavailable: it may have been deleted nevertheless.
    pub async fn delete_dead_letter(&self, id: JobId) -> StoreResult<bool> {
        let Some((queue, _)) = self.find_dead_letter(id).await? else { return Ok(false) };
        let keys = QueueKeys::new(&queue);
        let mut redis = self.store.redis.clone();
        let removed: i64 =
            redis::cmd("ZREM").arg(keys.dead_letters()).arg(id.to_string()).query_async(&mut redis).await?;
        // Only the caller that removes it from the list deletes the rest; after a crash here the result expires by its
        // TTL
        if removed == 1 {
            let mut rest = redis::pipe();
            rest.cmd("DEL")
                .arg(keys.result(&id))
                .arg(keys.log(&id))
                .arg(keys.checkpoint(&id))
                .arg(keys.signals(&id))
                .cmd("ZREM")
                .arg(keys.discarded())
                .arg(id.to_string());
            rest.exec_async(&mut redis).await?;
        }
        Ok(removed == 1)
    }

    /// A dead letter's queue and JSON; none if there is none.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn find_dead_letter(&self, id: JobId) -> StoreResult<Option<(QueueName, String)>> {
        let Some((LocatedJob::Finished(json), queue)) = self.locate_with_queue(id).await? else { return Ok(None) };
        let score: Option<f64> = redis::cmd("ZSCORE")
            .arg(QueueKeys::new(&queue).dead_letters())
            .arg(id.to_string())
            .query_async(&mut self.store.redis.clone())
            .await?;
        Ok(score.map(|_| (queue, json)))
    }
}
