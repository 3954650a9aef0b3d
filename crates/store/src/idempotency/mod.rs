//! Requests with an idempotency key: one effect, however often they are sent.
//!
//! The first request with a key stores a hash of its content and a random seed. The ids of what it creates are derived
//! from that, so a repetition after a crash finds what exists already. When it is done it stores its answer, which
//! repetitions get. A refused request frees its key, unless an equal one is on its way: that one may still succeed.

use std::time::Duration;

use crate::{Redis, StoreError, StoreResult, connection::budgets::DataKind, keys, script};

/// About what a request takes without its answer.
const KEY_BYTES: usize = 400;

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
        let memory = self.memory();
        // A request that is known is answered whatever the others take
        let has_room = memory.check_room(DataKind::IdempotencyKeys).is_ok();
        let ttl = if has_room { memory.idempotency_ttl(ttl) } else { Duration::ZERO };
        memory.note_stored(DataKind::IdempotencyKeys, KEY_BYTES);
        let known: Vec<String> = script::BEGIN_REQUEST
            .key(self.request_key(request))
            .arg(&*self.sealer().fingerprint(&request.content_hash))
            .arg(format!("{seed:032x}"))
            .arg(ttl.as_millis().to_string())
            .invoke_async(&mut self.clone())
            .await?;
        let damaged = || StoreError::damaged("an idempotency key without a seed or a status");
        match known.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["no_room"] => Err(StoreError::NoRoom(DataKind::IdempotencyKeys)),
            ["reused"] => Ok(IdempotencyStatus::KeyReused),
            ["answered", status, body] => Ok(IdempotencyStatus::Answered {
                status: status.parse().map_err(|_| damaged())?,
                body: self.sealer().open(&["answer", &request.fingerprint], body.to_owned())?,
            }),
            ["started", seed] => {
                Ok(IdempotencyStatus::Started { seed: u128::from_str_radix(seed, 16).map_err(|_| damaged())? })
            }
            _ => Err(damaged()),
        }
    }

    fn request_key(&self, request: &IdempotentRequest) -> String {
        keys::idempotency(&self.sealer().fingerprint(&request.fingerprint))
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
        let (key, sealer) = (self.request_key(request), self.sealer());
        let ttl = self.memory().idempotency_ttl(ttl);
        self.memory().note_stored(DataKind::IdempotencyKeys, body.len());
        let mut pipeline = redis::pipe();
        pipeline.atomic();
        pipeline
            .cmd("HSET")
            .arg(&key)
            .arg("content")
            .arg(&*sealer.fingerprint(&request.content_hash))
            .arg("seed")
            .arg(format!("{seed:032x}"));
        let answer = sealer.seal(&["answer", &request.fingerprint], body);
        pipeline.arg("status").arg(status).arg("answer").arg(&*answer);
        pipeline.cmd("PEXPIRE").arg(&key).arg(ttl.as_millis().to_string());
        Ok(pipeline.exec_async(&mut self.clone()).await?)
    }

    /// Forgets a request that had no effect, so that it may be repeated. It stays while an equal request runs, or when
    /// one was cut off or answered.
    ///
    /// # Errors
    /// Redis is unavailable.
    pub async fn forget_idempotent_request(&self, request: &IdempotentRequest, seed: u128) -> StoreResult<()> {
        let mut call = script::FORGET_REQUEST.key(self.request_key(request));
        call.arg(format!("{seed:032x}")).invoke_async::<i64>(&mut self.clone()).await?;
        Ok(())
    }
}
