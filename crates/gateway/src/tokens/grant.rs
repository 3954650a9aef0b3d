//! The rights that the claims of a token give, and whether other rights go beyond them.

use common::time::Millis;
use model::access::{Access, AccessLimits, MAX_PATTERNS, NamePatterns, Namespace, Scope};

use super::{
    TokenRefusal,
    claims::{Claims, Names},
};

/// The longest name of a subject that is shown.
const MAX_SUBJECT_CHARS: usize = 128;

/// Who a token speaks for when it has no subject.
const NO_SUBJECT: &str = "-";

/// What the owner of a token may do. The prefix tells its id from those of keys.
///
/// # Errors
/// A claim is not valid. A scope that does not exist here is no error: issuers name scopes of other services too.
pub(super) fn access(claims: &Claims, prefix: &str, expires_at: Millis) -> Result<Access, TokenRefusal> {
    let subject = claims.sub.as_deref().filter(|subject| !subject.is_empty()).unwrap_or(NO_SUBJECT);
    // The subject stands in logs, in the audit and in the name of a limit
    let subject: String =
        subject.chars().take(MAX_SUBJECT_CHARS).map(|c| if c.is_ascii_graphic() { c } else { '_' }).collect();
    let namespace = claims.namespace.as_deref().map(str::parse::<Namespace>).transpose();
    Ok(Access {
        id: format!("{prefix}{subject}"),
        name: subject,
        scopes: claims.scopes.0.iter().filter_map(|scope| scope.parse::<Scope>().ok()).collect(),
        queues: patterns("queues", claims.queues.as_ref())?,
        channels: patterns("channels", claims.channels.as_ref())?,
        namespace: namespace.map_err(|error| TokenRefusal::Grant("namespace", error.to_string()))?,
        expires_at: Some(expires_at),
        limits: AccessLimits::default(),
    })
}

fn patterns(claim: &'static str, names: Option<&Names>) -> Result<NamePatterns, TokenRefusal> {
    if names.is_some_and(|names| names.0.len() > MAX_PATTERNS) {
        return Err(TokenRefusal::Grant(claim, format!("it has more than {MAX_PATTERNS} patterns")));
    }
    let texts = names.map(|names| names.0.iter().map(String::as_str));
    NamePatterns::parse(texts).map_err(|error| TokenRefusal::Grant(claim, error.to_string()))
}
