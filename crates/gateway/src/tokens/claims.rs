//! What a token says, and what of it is believed: when it holds, for whom, from whom. Pure: the time comes from outside.

use common::time::Millis;
use serde::{Deserialize, Deserializer};

use super::TokenRefusal;

/// The claims of a token whose signature is good.
#[derive(Debug, Deserialize)]
pub(super) struct Claims {
    pub(super) sub: Option<String>,
    iss: Option<String>,
    #[serde(default)]
    aud: Names,
    #[serde(default, deserialize_with = "numeric_date")]
    exp: Option<Millis>,
    #[serde(default, deserialize_with = "numeric_date")]
    nbf: Option<Millis>,
    #[serde(default)]
    pub(super) scopes: Names,
    #[serde(default, deserialize_with = "present")]
    pub(super) channels: Option<Names>,
    #[serde(default, deserialize_with = "present")]
    pub(super) queues: Option<Names>,
    #[serde(default, deserialize_with = "present")]
    pub(super) namespace: Option<String>,
    /// Of tokens of this gateway: the key or the token that they were made with.
    #[serde(default)]
    pub(super) by: Option<String>,
}

/// What is demanded of the claims.
#[derive(Debug, Clone)]
pub(super) struct ClaimRules {
    pub(super) issuer: Option<String>,
    pub(super) aud: Option<String>,
    pub(super) leeway: Millis,
}

/// An array of texts, or one text with spaces between them, as OAuth writes scopes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Names(pub(super) Vec<String>);

impl<'de> Deserialize<'de> for Names {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Text(String),
            List(Vec<String>),
        }
        Ok(match Written::deserialize(deserializer)? {
            Written::Text(text) => Self(text.split_whitespace().map(str::to_owned).collect()),
            Written::List(names) => Self(names),
        })
    }
}

/// A claim that is there has a value: `null` must not stand for "no limit".
fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// Seconds since 1970, perhaps with a fraction. Text is refused, and so is what no clock shows.
fn numeric_date<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Millis>, D::Error> {
    const MAX_SECONDS: f64 = 253_402_300_799.0;
    let seconds = f64::deserialize(deserializer)?;
    if !(0.0..=MAX_SECONDS).contains(&seconds) {
        return Err(serde::de::Error::custom("a time out of range"));
    }
    #[expect(clippy::cast_possible_truncation, reason = "in range, checked above")]
    Ok(Some((seconds * 1000.0) as Millis))
}

impl Claims {
    /// Checks when the token holds, from whom it is and for whom. Returns when it ends: without the leeway, which is for
    /// clocks. Else each token that another one makes could live a little longer than that one.
    pub(super) fn check(&self, rules: &ClaimRules, now: Millis) -> Result<Millis, TokenRefusal> {
        let expires_at = self.exp.ok_or(TokenRefusal::Claim("it has no exp"))?;
        if now >= expires_at.saturating_add(rules.leeway) {
            return Err(TokenRefusal::Expired);
        }
        if self.nbf.is_some_and(|begins| begins > now.saturating_add(rules.leeway)) {
            return Err(TokenRefusal::NotYetValid);
        }
        if rules.issuer.is_some() && rules.issuer != self.iss {
            return Err(TokenRefusal::Claim("iss is not the issuer of auth.jwt.issuer"));
        }
        if rules.aud.as_ref().is_some_and(|aud| !self.aud.0.contains(aud)) {
            return Err(TokenRefusal::Claim("aud does not name auth.jwt.audience"));
        }
        Ok(expires_at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Millis = 1_700_000_000_000;

    fn rules() -> ClaimRules {
        ClaimRules { issuer: Some("https://id".to_owned()), aud: Some("galley".to_owned()), leeway: 5000 }
    }

    fn checked(json: &str) -> Result<Millis, TokenRefusal> {
        let claims: Claims = serde_json::from_str(json).map_err(|_| TokenRefusal::Malformed)?;
        claims.check(&rules(), NOW)
    }

    #[test]
    fn a_token_holds_between_its_times_give_or_take_the_leeway() {
        let at = |exp: &str, nbf: &str| {
            checked(&format!(r#"{{"iss":"https://id","aud":["x","galley"],"exp":{exp},"nbf":{nbf}}}"#))
        };
        assert_eq!(at("1700000060", "1700000000"), Ok(NOW + 60_000));
        assert_eq!(at("1699999995.001", "1700000005"), Ok(NOW - 4999));
        for exp in ["1699999995", "1699999994", "0"] {
            assert_eq!(at(exp, "0"), Err(TokenRefusal::Expired), "{exp}");
        }
        assert_eq!(at("1700000060", "1700000005.1"), Err(TokenRefusal::NotYetValid));
        for odd in ["\"1700000060\"", "null", "-1", "1e300", "[]", "true"] {
            assert_eq!(at(odd, "0"), Err(TokenRefusal::Malformed), "exp {odd}");
            assert_eq!(at("1700000060", odd), Err(TokenRefusal::Malformed), "nbf {odd}");
        }
    }

    #[test]
    fn a_token_of_another_issuer_for_somebody_else_or_without_an_end_is_refused() {
        for (json, is_good) in [
            (r#"{"iss":"https://id","aud":"galley","exp":1700000060}"#, true),
            (r#"{"iss":"https://id","aud":["galley"],"exp":1700000060}"#, true),
            (r#"{"iss":"https://id","aud":"galley"}"#, false),
            (r#"{"iss":"https://ID","aud":"galley","exp":1700000060}"#, false),
            (r#"{"iss":["https://id"],"aud":"galley","exp":1700000060}"#, false),
            (r#"{"aud":"galley","exp":1700000060}"#, false),
            (r#"{"iss":"https://id","aud":"galley2","exp":1700000060}"#, false),
            (r#"{"iss":"https://id","aud":null,"exp":1700000060}"#, false),
            (r#"{"iss":"https://id","exp":1700000060}"#, false),
            (r#"{"iss":"https://id","aud":"galley","exp":1700000060,"exp":1}"#, false),
            (r#"{"iss":"https://id","aud":"galley","exp":1700000060,"channels":null}"#, false),
            (r#"{"iss":"https://id","aud":"galley","exp":1700000060,"namespace":null}"#, false),
        ] {
            assert_eq!(checked(json).is_ok(), is_good, "{json}: {:?}", checked(json));
        }
    }

    #[test]
    fn scopes_are_an_array_or_words() {
        let scopes = |json: &str| serde_json::from_str::<Claims>(json).expect("claims").scopes.0;
        assert_eq!(scopes(r#"{"scopes":["a","b"]}"#), ["a", "b"]);
        assert_eq!(scopes(r#"{"scopes":"a  b"}"#), ["a", "b"]);
        assert_eq!(scopes("{}"), Vec::<String>::new());
    }
}
