//! Requests with an idempotency key: one effect, however often they are sent.
//!
//! The first request with a key stores a hash of its content and a random seed. The ids of what it creates are derived
//! from that, so a repetition after a crash finds what exists already. When it is done it stores its answer, which
//! repetitions get.

use std::time::Duration;

use crate::{Redis, StoreError, StoreResult, keys, script};

/// A request with a key.
#[derive(Debug, Clone)]
pub struct IdempotentRequest {
    /// Identifies the key: 64 hex digits.
    pub fingerprint: String,
    /// A hash of the content, to detect another request with the same key: 64 hex digits.
    pub content_hash: String,
}

/// The state of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IdempotencyStatus {
    /// Started: by this call, or by an earlier one that is still running or died.
    Started {
        /// The request's seed, from which ids are derived.
        seed: u128,
        /// Whether this call is the first.
        is_first: bool,
    },
    /// It was answered.
    Answered {
        /// The HTTP status.
        status: u16,
        /// The body.
        body: String,
    },
    /// The key belongs to another request.
    KeyReused,
}

impl Redis {
    /// Starts a request or returns its state.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn begin_idempotent_request(
        &self,
        request: &IdempotentRequest,
        ttl: Duration,
    ) -> StoreResult<IdempotencyStatus> {
        let seed = uuid::Uuid::now_v7().as_u128();
        let mut command = redis::cmd("SET");
        command.arg(keys::idempotency(&request.fingerprint)).arg(format!("{} {seed:032x}", request.content_hash));
        command.arg("NX").arg("GET").arg("PX").arg(ttl.as_millis().to_string());
        let before: Option<String> = command.query_async(&mut self.clone()).await?;
        let Some(before) = before else { return Ok(IdempotencyStatus::Started { seed, is_first: true }) };
        let (head, body) = before.split_once('\n').map_or((before.as_str(), None), |(head, body)| (head, Some(body)));
        let mut words = head.split(' ');
        if words.next() != Some(&request.content_hash) {
            return Ok(IdempotencyStatus::KeyReused);
        }
        let seed = words.next().and_then(|word| u128::from_str_radix(word, 16).ok());
        let seed = seed.ok_or_else(|| StoreError::damaged("an idempotency key without a seed"))?;
        match (words.next().and_then(|word| word.parse().ok()), body) {
            (Some(status), Some(body)) => Ok(IdempotencyStatus::Answered { status, body: body.to_owned() }),
            _ => Ok(IdempotencyStatus::Started { seed, is_first: false }),
        }
    }

    /// Stores the answer to a request.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn save_idempotent_answer(
        &self,
        request: &IdempotentRequest,
        seed: u128,
        ttl: Duration,
        status: u16,
        body: &str,
    ) -> StoreResult<()> {
        let mut command = redis::cmd("SET");
        command.arg(keys::idempotency(&request.fingerprint));
        command
            .arg(format!("{} {seed:032x} {status}\n{body}", request.content_hash))
            .arg("PX")
            .arg(ttl.as_millis().to_string());
        Ok(command.exec_async(&mut self.clone()).await?)
    }

    /// Forgets a request that had no effect, so that it may be repeated. An answered request stays.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn forget_idempotent_request(&self, request: &IdempotentRequest, seed: u128) -> StoreResult<()> {
        let mut call = script::DELETE_IF_EQUAL.key(keys::idempotency(&request.fingerprint));
        call.arg(format!("{} {seed:032x}", request.content_hash)).invoke_async::<i64>(&mut self.clone()).await?;
        Ok(())
    }
}
