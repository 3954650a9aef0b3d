//! What one key or token may use: requests and bytes of bodies in a second, shared by all gateways, and streams at a time.
//!
//! A gateway leases tokens from Redis in batches and spends them here, so a request within the limits seldom waits for
//! Redis. A refusal is remembered for as long as it holds: a client that is over its limit costs Redis next to nothing. While
//! Redis is away requests are not counted; those that need it fail anyway.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use common::settings::KeyLimitSettings;
use model::access::Access;
use store::{
    Redis,
    key_usage::{UsageKind, UsageLease},
};

use crate::error::{ApiError, ErrorCode};

/// The most keys whose use is known here. Beyond that those are forgotten that were not used for [`IDLE_AFTER`].
const MAX_METERS: usize = 10_000;
/// A meter that was not used for this long holds nothing that still counts.
const IDLE_AFTER: Duration = Duration::from_secs(5);
/// Leased tokens that were not spent in this time are lost: Redis has given out others since.
const LEASE_LIFETIME: Duration = Duration::from_secs(1);
/// A gateway leases this part of a second's tokens at a time.
const LEASE_SHARE: u64 = 20;

/// The limits of all keys.
pub(crate) struct KeyUsage {
    defaults: KeyLimitSettings,
    meters: Mutex<HashMap<String, Arc<KeyMeter>>>,
}

/// What one key uses, on this gateway.
#[derive(Debug)]
pub(crate) struct KeyMeter {
    access: String,
    requests_per_second: Option<u64>,
    bytes_per_second: Option<u64>,
    max_streams: Option<u32>,
    requests: Mutex<Leased>,
    bytes: Mutex<Leased>,
    /// Shared with the meter that replaces this one when the limits of the key change.
    streams: Arc<AtomicU32>,
    used_at: Mutex<Instant>,
}

/// Tokens that are here.
#[derive(Debug, Default)]
struct Leased {
    tokens: u64,
    since: Option<Instant>,
    refused_until: Option<Instant>,
}

/// What the tokens that are here say of a use.
#[derive(Debug, PartialEq, Eq)]
enum Spent {
    Yes,
    /// Redis has refused, and would again for this time.
    Refused(Duration),
    Unknown,
}

/// An open stream of a key.
#[derive(Debug)]
pub(crate) struct StreamPermit(Option<Arc<AtomicU32>>);

impl KeyUsage {
    pub(crate) fn new(defaults: &KeyLimitSettings) -> Self {
        Self { defaults: defaults.clone(), meters: Mutex::default() }
    }

    /// The meter of a key; none if nothing of it is limited.
    pub(crate) fn meter(&self, access: &Access) -> Option<Arc<KeyMeter>> {
        let requests = access.limits.requests_per_second.or(self.defaults.requests_per_second).map(u64::from);
        let bytes = access.limits.bytes_per_second.or(self.defaults.body_bytes_per_second);
        let streams = self.defaults.streams;
        if requests.is_none() && bytes.is_none() && streams.is_none() {
            return None;
        }
        let now = Instant::now();
        let mut meters = self.meters.lock().unwrap_or_else(PoisonError::into_inner);
        let has_changed = |meter: &KeyMeter| (meter.requests_per_second, meter.bytes_per_second) != (requests, bytes);
        if let Some(meter) = meters.get(&access.id).filter(|meter| !has_changed(meter)) {
            *meter.used_at.lock().unwrap_or_else(PoisonError::into_inner) = now;
            return Some(meter.clone());
        }
        if meters.len() >= MAX_METERS {
            meters.retain(|_, meter| !meter.is_idle(now));
        }
        let open = meters.get(&access.id).map(|meter| meter.streams.clone()).unwrap_or_default();
        let meter = Arc::new(KeyMeter {
            access: access.id.clone(),
            requests_per_second: requests,
            bytes_per_second: bytes,
            max_streams: streams,
            requests: Mutex::default(),
            bytes: Mutex::default(),
            streams: open,
            used_at: Mutex::new(now),
        });
        if meters.len() < MAX_METERS {
            meters.insert(access.id.clone(), meter.clone());
        }
        Some(meter)
    }
}

impl KeyMeter {
    /// Counts a request.
    ///
    /// # Errors
    /// The key has used all that it may.
    pub(crate) async fn count_request(&self, redis: &Redis) -> Result<(), ApiError> {
        match self.requests_per_second {
            Some(rate) => self.spend(redis, UsageKind::Requests, rate, 1).await,
            None => Ok(()),
        }
    }

    /// Counts the bytes of a body. It is accepted if any bytes are left, and counts in whole then.
    ///
    /// # Errors
    /// The key has used all that it may.
    pub(crate) async fn count_body(&self, redis: &Redis, bytes: u64) -> Result<(), ApiError> {
        match self.bytes_per_second {
            Some(rate) if bytes > 0 => self.spend(redis, UsageKind::BodyBytes, rate, bytes).await,
            _ => Ok(()),
        }
    }

    async fn spend(&self, redis: &Redis, kind: UsageKind, rate: u64, needed: u64) -> Result<(), ApiError> {
        let leased = self.leased(kind);
        match lock(leased).spend(needed, Instant::now()) {
            Spent::Yes => return Ok(()),
            Spent::Refused(wait) => return Err(exceeded(kind, rate, wait)),
            Spent::Unknown => {}
        }
        let lease = redis.lease_usage(kind, &self.access, rate, needed, rate / LEASE_SHARE).await;
        let now = Instant::now();
        match lease {
            Ok(UsageLease::Leased(tokens)) => {
                lock(leased).add(tokens.saturating_sub(needed), now);
                Ok(())
            }
            Ok(UsageLease::Wait(wait)) => {
                lock(leased).refused_until = Some(now + wait);
                Err(exceeded(kind, rate, wait))
            }
            Err(error) => {
                tracing::debug!(event = "key_usage.unavailable", %error, "the use of a key is not counted");
                Ok(())
            }
        }
    }

    fn leased(&self, kind: UsageKind) -> &Mutex<Leased> {
        match kind {
            UsageKind::Requests => &self.requests,
            UsageKind::BodyBytes => &self.bytes,
        }
    }

    fn is_idle(&self, now: Instant) -> bool {
        self.streams.load(Relaxed) == 0 && now.duration_since(*lock(&self.used_at)) > IDLE_AFTER
    }
}

impl Leased {
    /// Spends tokens that are here.
    fn spend(&mut self, needed: u64, now: Instant) -> Spent {
        if let Some(until) = self.refused_until {
            if now < until {
                return Spent::Refused(until - now);
            }
            self.refused_until = None;
        }
        let is_valid = self.since.is_some_and(|at| now.duration_since(at) < LEASE_LIFETIME);
        if !is_valid || self.tokens < needed {
            return Spent::Unknown;
        }
        self.tokens -= needed;
        Spent::Yes
    }

    /// Adds tokens. What is left of older ones counts on, as long as those would have.
    fn add(&mut self, tokens: u64, now: Instant) {
        let is_valid = self.since.is_some_and(|at| now.duration_since(at) < LEASE_LIFETIME);
        self.tokens = if is_valid { self.tokens.saturating_add(tokens) } else { tokens };
        self.since = if is_valid { self.since } else { Some(now) };
    }
}

impl StreamPermit {
    /// A permit that counts nothing.
    #[cfg(test)]
    pub(crate) fn none() -> Self {
        Self(None)
    }

    /// Counts a stream of a key.
    ///
    /// # Errors
    /// The key has as many as it may have.
    pub(crate) fn acquire(meter: Option<&Arc<KeyMeter>>) -> Result<Self, ApiError> {
        let Some((meter, max)) = meter.and_then(|meter| Some((meter, meter.max_streams?))) else {
            return Ok(Self(None));
        };
        let one_more = |open: u32| open.checked_add(1).filter(|open| *open <= max);
        meter.streams.fetch_update(Relaxed, Relaxed, one_more).map_err(|_| {
            let message = format!("{max} streams of this key are open, which is auth.limits.streams");
            ApiError::new(ErrorCode::TooManyStreamsOfKey, message)
        })?;
        Ok(Self(Some(meter.streams.clone())))
    }
}

impl Drop for StreamPermit {
    fn drop(&mut self) {
        if let Some(streams) = &self.0 {
            streams.fetch_sub(1, Relaxed);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn exceeded(kind: UsageKind, rate: u64, wait: Duration) -> ApiError {
    metrics::counter!("galley_key_limits_exceeded_total", "kind" => kind.name()).increment(1);
    let what = match kind {
        UsageKind::Requests => "requests",
        UsageKind::BodyBytes => "bytes of bodies",
    };
    let message = format!("this key may send {rate} {what} in a second");
    ApiError::new(ErrorCode::KeyLimitExceeded, message).with_retry_after(wait)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(streams: Option<u32>) -> KeyUsage {
        KeyUsage::new(&KeyLimitSettings { requests_per_second: None, body_bytes_per_second: None, streams })
    }

    #[test]
    fn leased_tokens_are_spent_until_they_are_too_old() {
        let start = Instant::now();
        let after = |ms: u64| start + Duration::from_millis(ms);
        let mut leased = Leased::default();
        assert_eq!(leased.spend(1, start), Spent::Unknown);
        leased.add(3, start);
        assert_eq!(leased.spend(2, after(500)), Spent::Yes);
        assert_eq!(leased.spend(2, after(500)), Spent::Unknown, "one is left");
        leased.add(5, after(900));
        assert_eq!(leased.spend(6, after(999)), Spent::Yes);
        leased.add(5, after(999));
        assert_eq!(leased.spend(1, after(1000)), Spent::Unknown, "too old");
        leased.refused_until = Some(after(2000));
        leased.add(5, after(1500));
        assert_eq!(leased.spend(1, after(1500)), Spent::Refused(Duration::from_millis(500)));
        assert_eq!(leased.spend(1, after(2000)), Spent::Yes);
    }

    #[test]
    fn a_key_has_no_more_streams_than_it_may_and_makes_room_when_one_ends() {
        let usage = usage(Some(2));
        let key = |id: &str| Access { id: id.to_owned(), ..Access::everything() };
        let open = |id: &str| StreamPermit::acquire(usage.meter(&key(id)).as_ref());
        let first = open("a").expect("room");
        let _second = open("a").expect("room");
        assert_eq!(open("a").expect_err("full").code(), ErrorCode::TooManyStreamsOfKey);
        let _other = open("b").expect("another key");
        drop(first);
        open("a").expect("room again");
        assert!(self::usage(None).meter(&key("a")).is_none(), "nothing is limited");
    }

    #[test]
    fn the_meters_of_many_keys_take_bounded_memory() {
        let usage = usage(Some(2));
        for n in 0..MAX_METERS + 100 {
            usage.meter(&Access { id: n.to_string(), ..Access::everything() });
        }
        assert_eq!(lock(&usage.meters).len(), MAX_METERS);
    }
}
