//! A key as it is stored, in a file or in Redis: what it may do, and hashes of its secrets.

use common::{
    name::quoted,
    time::{self, Millis},
};
use serde::{Deserialize, Serialize};

use super::{Access, AccessLimits, ApiKey, KeyHash, KeyId, MAX_PATTERNS, MemberRight, NamePatterns, Scope, Scopes};

/// The longest name of a key, in characters.
pub const MAX_KEY_NAME_LENGTH: usize = 128;
/// The highest limits of a key: far above what a gateway serves.
const MAX_REQUESTS_PER_SECOND: u32 = 1_000_000;
const MAX_BYTES_PER_SECOND: u64 = 1 << 40;

/// A key without its secret.
#[derive(Debug, Clone, PartialEq)]
pub struct ApiKeyRecord {
    /// The public part.
    pub id: KeyId,
    /// What it may do.
    pub access: Access,
    /// The hash of its secret.
    pub hash: KeyHash,
    /// The secret before the last rotation, and until when it may be used.
    pub previous: Option<(KeyHash, Millis)>,
    /// When it was made, if that is known.
    pub created_at: Option<Millis>,
}

/// The result of comparing a secret with a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyCheck {
    /// The secret is the key's.
    Valid,
    /// The secret is the key's, and its time is over.
    Expired,
    /// The secret is another.
    Wrong,
}

impl ApiKeyRecord {
    /// Compares the hash of a secret. Both comparisons always run.
    #[must_use]
    pub fn check(&self, presented: &KeyHash, now: Millis) -> KeyCheck {
        let is_current = self.hash.is_same(presented);
        let (previous, until) =
            self.previous.as_ref().map_or((&self.hash, Millis::MIN), |(hash, until)| (hash, *until));
        let is_previous = previous.is_same(presented);
        match (is_current, is_previous) {
            (false, false) => KeyCheck::Wrong,
            _ if self.access.expires_at.is_some_and(|at| now >= at) => KeyCheck::Expired,
            (true, _) => KeyCheck::Valid,
            (false, true) if now < until => KeyCheck::Valid,
            (false, true) => KeyCheck::Expired,
        }
    }
}

/// The members of a stored key: in JSON in Redis, in TOML in a file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the members are those of Access and ApiKeyRecord")]
pub struct KeyText {
    pub id: String,
    pub name: String,
    pub hash: String,
    pub scopes: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queues: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channels: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_at: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_second: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_hash: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_expires_at: Option<String>,
}

impl KeyText {
    /// A key that is made now, without limits, end and namespace.
    #[must_use]
    pub fn new(key: &ApiKey, name: String, scopes: Vec<String>, now: Millis) -> Self {
        Self {
            id: key.id().to_string(),
            name,
            hash: key.hash().to_string(),
            scopes,
            queues: None,
            channels: None,
            namespace: None,
            created_at: Some(time::format(now)),
            expires_at: None,
            requests_per_second: None,
            bytes_per_second: None,
            previous_hash: None,
            previous_expires_at: None,
        }
    }

    /// What is stored of a key.
    #[must_use]
    pub fn of(record: &ApiKeyRecord) -> Self {
        let ApiKeyRecord { id, access, hash, previous, created_at } = record;
        Self {
            id: id.to_string(),
            name: access.name.clone(),
            hash: hash.to_string(),
            scopes: access.scopes.iter().map(|scope| scope.to_string()).collect(),
            queues: access.queues.to_texts(),
            channels: access.channels.to_texts(),
            namespace: access.namespace.as_ref().map(ToString::to_string),
            created_at: created_at.map(time::format),
            expires_at: access.expires_at.map(time::format),
            requests_per_second: access.limits.requests_per_second,
            bytes_per_second: access.limits.bytes_per_second,
            previous_hash: previous.as_ref().map(|(hash, _)| hash.to_string()),
            previous_expires_at: previous.as_ref().map(|(_, until)| time::format(*until)),
        }
    }

    /// Checks the members.
    ///
    /// # Errors
    /// A member that cannot be used; the text names it, and never holds a secret.
    pub fn parse(&self) -> Result<ApiKeyRecord, String> {
        let id: KeyId = self.id.parse().map_err(|error: common::name::NameError| error.to_string())?;
        let previous = match (&self.previous_hash, &self.previous_expires_at) {
            (Some(hash), Some(until)) => Some((hash.parse()?, parse_moment("previous_expires_at", until)?)),
            (None, None) => None,
            _ => return Err("previous_hash and previous_expires_at must be given together".to_owned()),
        };
        let created_at = self.created_at.as_deref().map(|text| parse_moment("created_at", text)).transpose()?;
        Ok(ApiKeyRecord { access: self.parse_access(&id)?, hash: self.hash.parse()?, id, previous, created_at })
    }

    /// What the key may do.
    fn parse_access(&self, id: &KeyId) -> Result<Access, String> {
        let scopes: Scopes = self.scopes.iter().map(|text| text.parse::<Scope>()).collect::<Result<_, _>>()?;
        if scopes.is_empty() {
            return Err(format!("scopes must name at least one of {}", Scope::ALL.map(Scope::name).join(", ")));
        }
        Ok(Access {
            id: id.to_string(),
            name: checked_name(&self.name)?,
            scopes,
            queues: parse_patterns("queues", self.queues.as_deref())?,
            channels: parse_patterns("channels", self.channels.as_deref())?,
            namespace: self.namespace.as_deref().map(str::parse).transpose().map_err(|error| format!("{error}"))?,
            expires_at: self.expires_at.as_deref().map(|text| parse_moment("expires_at", text)).transpose()?,
            limits: AccessLimits {
                requests_per_second: within("requests_per_second", self.requests_per_second, MAX_REQUESTS_PER_SECOND)?,
                bytes_per_second: within("bytes_per_second", self.bytes_per_second, MAX_BYTES_PER_SECOND)?,
            },
            member: MemberRight::Any,
        })
    }
}

fn checked_name(name: &str) -> Result<String, String> {
    let length = name.chars().count();
    if (1..=MAX_KEY_NAME_LENGTH).contains(&length) && !name.chars().any(char::is_control) {
        return Ok(name.to_owned());
    }
    Err(format!(
        "name must have 1 to {MAX_KEY_NAME_LENGTH} characters without control characters, got {}",
        quoted(name)
    ))
}

fn parse_patterns(member: &str, given: Option<&[String]>) -> Result<NamePatterns, String> {
    if given.is_some_and(|given| !(1..=MAX_PATTERNS).contains(&given.len())) {
        return Err(format!("{member} must have 1 to {MAX_PATTERNS} patterns, or be absent for every name"));
    }
    let given = given.map(|given| given.iter().map(String::as_str));
    NamePatterns::parse(given).map_err(|error| format!("{member}: {error}"))
}

fn parse_moment(member: &str, text: &str) -> Result<Millis, String> {
    let parsed = Some(text).filter(|text| time::is_rfc_3339(text)).and_then(|text| time::parse_time(text, 0).ok());
    parsed
        .map(|time| time.at)
        .ok_or_else(|| format!("{member} must be a time such as 2030-01-31T12:00:00Z, got {}", quoted(text)))
}

fn within<N: PartialOrd + From<u8> + std::fmt::Display + Copy>(
    member: &str,
    given: Option<N>,
    max: N,
) -> Result<Option<N>, String> {
    match given {
        Some(number) if number < N::from(1) || number > max => {
            Err(format!("{member} must be an integer from 1 to {max}, got {number}"))
        }
        given => Ok(given),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::ApiKey;

    fn record(key: &ApiKey) -> ApiKeyRecord {
        let text = KeyText {
            id: key.id().to_string(),
            name: "the \"name\"".to_owned(),
            hash: key.hash().to_string(),
            scopes: vec!["jobs:write".to_owned(), "work".to_owned()],
            queues: Some(vec!["orders.*".to_owned()]),
            channels: None,
            namespace: Some("acme".to_owned()),
            created_at: Some("2030-01-01T00:00:00Z".to_owned()),
            expires_at: Some("2030-01-02T00:00:00Z".to_owned()),
            requests_per_second: Some(5),
            bytes_per_second: None,
            previous_hash: None,
            previous_expires_at: None,
        };
        text.parse().expect("a key")
    }

    #[test]
    fn a_stored_key_is_read_back_as_it_was() {
        let mut kept = record(&ApiKey::generate());
        assert_eq!(KeyText::of(&kept).parse(), Ok(kept.clone()));
        kept.previous = Some((ApiKey::generate().hash(), 5000));
        let json = serde_json::to_string(&KeyText::of(&kept)).expect("JSON");
        assert_eq!(serde_json::from_str::<KeyText>(&json).expect("a key").parse(), Ok(kept));
    }

    #[test]
    fn a_secret_is_valid_until_it_expires_or_the_grace_of_its_rotation_is_over() {
        let (key, old, foreign) = (ApiKey::generate(), ApiKey::generate(), ApiKey::generate());
        let mut kept = record(&key);
        let end = kept.access.expires_at.expect("an end");
        let check = |kept: &ApiKeyRecord, key: &ApiKey, now| kept.check(&key.hash(), now);
        assert_eq!(check(&kept, &key, end - 1), KeyCheck::Valid);
        assert_eq!(check(&kept, &key, end), KeyCheck::Expired);
        assert_eq!(check(&kept, &foreign, end), KeyCheck::Wrong, "who does not have the secret learns nothing");
        assert_eq!(check(&kept, &old, 0), KeyCheck::Wrong);
        kept.previous = Some((old.hash(), 1000));
        assert_eq!(check(&kept, &old, 999), KeyCheck::Valid);
        assert_eq!(check(&kept, &old, 1000), KeyCheck::Expired);
        assert_eq!(check(&kept, &key, 1000), KeyCheck::Valid);
    }

    #[test]
    fn what_a_key_cannot_have_is_named() {
        let good = KeyText::of(&record(&ApiKey::generate()));
        let refused = |change: fn(&mut KeyText), said: &str| {
            let mut text = good.clone();
            change(&mut text);
            let error = text.parse().expect_err(said);
            assert!(error.contains(said), "{error}");
        };
        refused(|text| text.scopes = vec![], "scopes must name at least one");
        refused(|text| text.scopes = vec!["all".to_owned()], "scope must be one of");
        refused(|text| text.queues = Some(vec![]), "queues must have 1 to 32 patterns");
        refused(|text| text.channels = Some(vec!["a b".to_owned()]), "channels: pattern must");
        refused(|text| text.name = String::new(), "name must have");
        refused(|text| text.expires_at = Some("soon".to_owned()), "expires_at must be a time");
        refused(|text| text.requests_per_second = Some(0), "requests_per_second must be an integer from 1");
        refused(|text| text.namespace = Some("A".to_owned()), "namespace must");
        refused(|text| text.hash = "glk_id_secret".to_owned(), "hash must be sha256:");
        refused(|text| text.previous_hash = Some(text.hash.clone()), "must be given together");
    }
}
