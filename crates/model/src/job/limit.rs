//! Limits that jobs carry: how many jobs of a key run at a time, and how often one starts.
//!
//! `rate_limit` with a `key` limits the jobs of a queue that share the key. Without a key, `max_per_second` limits the
//! jobs of the queue that carry the same `max_per_second`, and no others: one producer cannot slow down the rest. Only
//! settings and `PUT .../limits` limit a whole queue. A rate is a token bucket, or strict: see [`Rate`].

use std::time::Duration;

use serde_json::value::RawValue;

use common::{
    json::Object,
    name::{LimitKey, NameError, quoted},
    rate::Rate,
    time,
};

/// Longest aging of priorities.
const MAX_AGING: Duration = Duration::from_hours(168);

/// Largest number of jobs of a key at a time, and per period.
const MAX_LIMIT: u32 = 1_000_000;

/// A job's `rate_limit`: the limit of how many jobs of its queue with the same key run and start when this one does.
/// It holds for this job: no job changes the limit of the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyLimit {
    /// The key.
    pub key: LimitKey,
    /// Jobs that run at a time; 0 keeps this job waiting.
    pub concurrency: Option<u32>,
    /// Jobs that start in a period, possibly all at once.
    pub rate: Option<Rate>,
    /// Jobs that start in a period, evenly spaced.
    pub throttle: Option<Rate>,
}

impl KeyLimit {
    /// The limit as the scripts read it: seven numbers, `-1` or `0` for no limit.
    #[must_use]
    pub fn encode(&self) -> String {
        let concurrency = self.concurrency.map_or("-1".to_owned(), |max| max.to_string());
        let (rate, throttle) = (self.rate.unwrap_or(Rate::new(0, 0)), self.throttle.unwrap_or(Rate::new(0, 0)));
        let Rate { limit, period_ms, burst, is_strict } = rate;
        let strict = u8::from(is_strict);
        format!("{concurrency} {limit} {period_ms} {burst} {strict} {} {}", throttle.limit, throttle.period_ms)
    }

    /// The field of a record: the key, a space, and the limit as the scripts read it.
    #[must_use]
    pub fn to_field(&self) -> String {
        format!("{} {}", self.key, self.encode())
    }

    /// Splits the field of a record into the key and the limit as the scripts read it.
    ///
    /// # Errors
    /// The field has no valid key.
    pub fn split_field(field: &str) -> Result<(LimitKey, &str), NameError> {
        let (key, limit) = field.split_once(' ').unwrap_or((field, ""));
        Ok((key.parse()?, limit))
    }

    /// Reads a job's `rate_limit`.
    ///
    /// # Errors
    /// The message says what is wrong and what is allowed.
    pub fn parse(raw: &RawValue) -> Result<Self, String> {
        let object = parse_members(
            raw,
            "rate_limit",
            &["key", "concurrency", "rate", "throttle", "max_per_second", "on_limit"],
        )?;
        if let Some(action) = object.get("on_limit").filter(|action| decode(action).as_deref() != Some("wait")) {
            return Err(format!("rate_limit.on_limit must be \"wait\", got {}", quoted(action.get())));
        }
        let per_second = object.get("max_per_second").map(parse_max_per_second).transpose()?;
        let Some(key) = object.get("key") else {
            let others = ["concurrency", "rate", "throttle"].into_iter().find(|name| object.get(name).is_some());
            return match (per_second, others) {
                (Some(rate), None) => Ok(Self::of_all_with(rate)),
                _ => Err("rate_limit.key is required, unless rate_limit has max_per_second alone".to_owned()),
            };
        };
        let key: String = serde_json::from_str(key.get())
            .map_err(|_| format!("rate_limit.key must be a string, got {}", quoted(key.get())))?;
        let rate = object.get("rate").map(|raw| parse_rate(raw, "rate_limit.rate")).transpose()?;
        if rate.is_some() && per_second.is_some() {
            return Err("rate_limit.rate and rate_limit.max_per_second mean the same; give one of them".to_owned());
        }
        let limit = Self {
            key: key.parse().map_err(|error| format!("rate_limit.{error}"))?,
            concurrency: object
                .get("concurrency")
                .map(|raw| parse_concurrency(raw, "rate_limit.concurrency"))
                .transpose()?,
            rate: rate.or(per_second),
            throttle: object.get("throttle").map(|raw| parse_throttle(raw, "rate_limit.throttle")).transpose()?,
        };
        if limit.concurrency.is_none() && limit.rate.is_none() && limit.throttle.is_none() {
            return Err("rate_limit must have concurrency, rate, throttle or max_per_second beside its key".to_owned());
        }
        Ok(limit)
    }

    /// The limit that all jobs of a queue share that carry this rate without a key.
    fn of_all_with(rate: Rate) -> Self {
        let key = format!("rate:{}:{}", rate.limit, rate.period_ms).parse().unwrap_or(LimitKey::or_placeholder(None));
        Self { key, concurrency: None, rate: Some(rate), throttle: None }
    }
}

/// Reads `{"limit": 100, "period": "PT1M", "burst": 10, "strict": true}`; the last two may be left out. `period_ms` may
/// stand for `period`, as a queue shows it.
///
/// # Errors
/// The message says what is wrong and what is allowed.
pub fn parse_rate(raw: &RawValue, name: &str) -> Result<Rate, String> {
    let object = parse_members(raw, name, &["limit", "period", "period_ms", "burst", "strict"])?;
    let refused = |member: &str, allowed: &str| {
        let got = object.get(member).map_or_else(|| "nothing".to_owned(), |raw| quoted(raw.get()));
        format!("{name}.{member} must be {allowed}, got {got}")
    };
    let limit = object.get("limit").and_then(|raw| raw.get().parse().ok()).filter(|n| (1..=MAX_LIMIT).contains(n));
    let given_ms = object.get("period_ms").map(|raw| raw.get().parse::<u64>().unwrap_or(0));
    if given_ms.is_some_and(|ms| !(1..=86_400_000).contains(&ms)) {
        return Err(refused("period_ms", "an integer of milliseconds from 1 to 86400000"));
    }
    let period = object
        .get("period")
        .and_then(decode)
        .and_then(|text| time::parse_duration(&text).ok())
        .and_then(|length| u64::try_from(length.as_millis()).ok())
        .filter(|ms| (1..=86_400_000).contains(ms));
    let limit: u32 = limit.ok_or_else(|| refused("limit", &format!("an integer from 1 to {MAX_LIMIT}")))?;
    let period = if object.get("period").is_some() { period } else { given_ms };
    let period_ms = period.ok_or_else(|| refused("period", "an ISO 8601 duration from PT0.001S to P1D"))?;
    // A queue shows both
    if given_ms.is_some_and(|ms| ms != period_ms) {
        return Err(format!("{name}.period and {name}.period_ms mean the same; give one of them"));
    }
    let burst =
        object.get("burst").map_or(Some(limit), |raw| raw.get().parse().ok()).filter(|n| (1..=limit).contains(n));
    let is_strict = match object.get("strict").map(RawValue::get) {
        None | Some("false") => false,
        Some("true") => true,
        Some(_) => return Err(refused("strict", "true or false")),
    };
    let max_strict = Rate::MAX_STRICT_LIMIT;
    if is_strict && limit > max_strict {
        return Err(refused("limit", &format!("an integer from 1 to {max_strict} in a strict rate")));
    }
    let burst = burst.ok_or_else(|| refused("burst", &format!("an integer from 1 to the limit, {limit}")))?;
    Ok(Rate { limit, period_ms, burst, is_strict })
}

/// Reads a rate whose starts are evenly spaced.
fn parse_throttle(raw: &RawValue, name: &str) -> Result<Rate, String> {
    parse_members(raw, name, &["limit", "period"])?;
    parse_rate(raw, name)
}

/// Reads how many jobs may run at a time.
///
/// # Errors
/// The message says what is allowed.
pub fn parse_concurrency(raw: &RawValue, name: &str) -> Result<u32, String> {
    let number = raw.get().parse().ok().filter(|number| *number <= MAX_LIMIT);
    number.ok_or_else(|| format!("{name} must be an integer from 0 to {MAX_LIMIT}, got {}", quoted(raw.get())))
}

/// Reads how much earlier a job of a queue counts as arrived for each step of its priority.
///
/// # Errors
/// It is no duration, or out of bounds: the message says what is allowed.
pub fn parse_priority_aging(raw: &RawValue) -> Result<Duration, String> {
    let aging = decode(raw).and_then(|text| time::parse_duration(&text).ok());
    aging.filter(|aging| (Duration::from_millis(1)..=MAX_AGING).contains(aging)).ok_or_else(|| {
        format!("priority_aging must be an ISO 8601 duration from PT0.001S to P7D, got {}", quoted(raw.get()))
    })
}

fn parse_max_per_second(raw: &RawValue) -> Result<Rate, String> {
    let refused =
        || format!("rate_limit.max_per_second must be a number from 0.001 to {MAX_LIMIT}, got {}", quoted(raw.get()));
    let number: f64 = raw.get().parse().map_err(|_| refused())?;
    if !(0.001..=f64::from(MAX_LIMIT)).contains(&number) {
        return Err(refused());
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the bounds are checked above")]
    let rate = if number < 1.0 { Rate::new(1, (1000.0 / number) as u64) } else { Rate::new(number as u32, 1000) };
    Ok(rate)
}

fn parse_members<'a>(raw: &'a RawValue, name: &str, known: &[&str]) -> Result<Object<'a>, String> {
    let object: Object = serde_json::from_str(raw.get())
        .map_err(|_| format!("{name} must be a JSON object, got {}", quoted(raw.get())))?;
    object.check_names(known).map_err(|unknown| format!("{name}: {unknown}"))?;
    Ok(object)
}

/// The text of a JSON string.
fn decode(raw: &RawValue) -> Option<String> {
    serde_json::from_str(raw.get()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<KeyLimit, String> {
        KeyLimit::parse(&RawValue::from_string(json.to_owned()).expect("JSON"))
    }

    #[test]
    fn limits_are_of_a_key_or_of_all_jobs_with_the_same_rate() {
        for (json, field) in [
            (r#"{"max_per_second":1}"#, "rate:1:1000 -1 1 1000 1 0 0 0"),
            (r#"{"max_per_second":0.5}"#, "rate:1:2000 -1 1 2000 1 0 0 0"),
            (
                r#"{"key":"tenant:1","concurrency":2,"rate":{"limit":100,"period":"PT1M"},"throttle":{"limit":5,"period":"PT1S"}}"#,
                "tenant:1 2 100 60000 100 0 5 1000",
            ),
            (r#"{"key":"a","concurrency":0}"#, "a 0 0 0 0 0 0 0"),
            (r#"{"key":"a","rate":{"limit":1,"period":"PT60S","period_ms":60000}}"#, "a -1 1 60000 1 0 0 0"),
            (r#"{"key":"a","rate":{"limit":5,"period":"PT1S","burst":2}}"#, "a -1 5 1000 2 0 0 0"),
            (r#"{"key":"a","rate":{"limit":5,"period_ms":1000,"burst":1,"strict":true}}"#, "a -1 5 1000 1 1 0 0"),
        ] {
            let limit = parse(json).expect(json);
            assert_eq!(limit.to_field(), field, "stored, and to be read for as long as jobs wait");
            assert_eq!(KeyLimit::split_field(field), Ok((limit.key.clone(), limit.encode().as_str())));
        }
    }

    #[test]
    fn a_field_without_a_limit_has_a_key_and_one_without_a_key_is_refused() {
        assert_eq!(KeyLimit::split_field("a").map(|(key, limit)| (key.to_string(), limit)), Ok(("a".to_owned(), "")));
        for field in ["", " 1 0 0 0 0", "{a} 1 0 0 0 0"] {
            assert!(KeyLimit::split_field(field).is_err(), "{field}");
        }
    }

    #[test]
    fn each_wrong_limit_is_refused_by_name() {
        for (json, expected) in [
            ("1", "rate_limit must be a JSON object"),
            ("{}", "rate_limit.key is required"),
            (r#"{"concurrency":1}"#, "rate_limit.key is required"),
            (r#"{"key":"a"}"#, "rate_limit must have concurrency"),
            (r#"{"key":"{x}","concurrency":1}"#, "rate_limit.key must match"),
            (r#"{"key":"a","concurrency":-1}"#, "rate_limit.concurrency must be"),
            (r#"{"key":"a","rate":{"limit":0,"period":"PT1S"}}"#, "rate_limit.rate.limit must be"),
            (r#"{"key":"a","rate":{"limit":1}}"#, "rate_limit.rate.period must be"),
            (r#"{"key":"a","throttle":{"limit":1,"period":"P2D"}}"#, "rate_limit.throttle.period must be"),
            (r#"{"key":"a","rate":{"limit":5,"period":"PT1S","burst":6}}"#, "rate_limit.rate.burst must be"),
            (r#"{"key":"a","rate":{"limit":5,"period":"PT1S","burst":0}}"#, "rate_limit.rate.burst must be"),
            (r#"{"key":"a","rate":{"limit":5,"period":"PT1S","strict":1}}"#, "rate_limit.rate.strict must be"),
            (r#"{"key":"a","rate":{"limit":1001,"period":"PT1S","strict":true}}"#, "rate_limit.rate.limit must be"),
            (r#"{"key":"a","rate":{"limit":5,"period_ms":0}}"#, "rate_limit.rate.period_ms must be"),
            (r#"{"key":"a","rate":{"limit":5,"period":"PT1S","period_ms":9}}"#, "rate_limit.rate.period and"),
            (r#"{"key":"a","throttle":{"limit":1,"period":"PT1S","burst":1}}"#, "rate_limit.throttle: unknown member"),
            (r#"{"max_per_second":0}"#, "rate_limit.max_per_second must be"),
            (r#"{"max_per_second":"1"}"#, "rate_limit.max_per_second must be"),
            (r#"{"key":"a","concurrency":1,"on_limit":"drop"}"#, "rate_limit.on_limit must be"),
            (r#"{"key":"a","concurency":1}"#, "rate_limit: unknown member"),
        ] {
            let error = parse(json).expect_err(json);
            assert!(error.starts_with(expected), "{json}: {error}");
        }
    }
}
