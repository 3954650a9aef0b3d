//! The rights that the claims of a token give, and whether other rights go beyond them.

use common::time::Millis;
use model::access::{Access, AccessLimits, MAX_PATTERNS, MemberRight, NamePatterns, Namespace, Scope};

use super::{
    TokenRefusal,
    claims::{Claims, Names},
};

/// The longest name of a subject that is shown.
const MAX_SUBJECT_CHARS: usize = 128;

/// What the id of the owner of a token that a gateway made begins with, and of the owner of another token. No key has such an id.
pub(crate) const OWN_TOKEN_PREFIX: &str = "token:";
pub(crate) const ISSUED_TOKEN_PREFIX: &str = "jwt:";

/// Who a token speaks for when it has no subject.
const NO_SUBJECT: &str = "-";

/// What the owner of a token may do. The prefix tells its id from those of keys.
///
/// # Errors
/// A claim is not valid. A scope that does not exist here is no error: issuers name scopes of other services too.
pub(super) fn access(claims: &Claims, prefix: &str, expires_at: Millis) -> Result<Access, TokenRefusal> {
    let member = member_right(claims, prefix);
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
        member,
    })
}

/// As which member of a channel its owner may take part: as the subject, exactly as the issuer or a key wrote it. What another
/// token made may name any subject, so nobody vouches for that one.
fn member_right(claims: &Claims, prefix: &str) -> MemberRight {
    let is_vouched_for = prefix != OWN_TOKEN_PREFIX
        || claims
            .by
            .as_ref()
            .is_some_and(|by| !by.starts_with(OWN_TOKEN_PREFIX) && !by.starts_with(ISSUED_TOKEN_PREFIX));
    let subject = claims.sub.as_deref().filter(|_| is_vouched_for).and_then(|subject| subject.parse().ok());
    subject.map_or(MemberRight::None, MemberRight::Only)
}

fn patterns(claim: &'static str, names: Option<&Names>) -> Result<NamePatterns, TokenRefusal> {
    if names.is_some_and(|names| names.0.len() > MAX_PATTERNS) {
        return Err(TokenRefusal::Grant(claim, format!("it has more than {MAX_PATTERNS} patterns")));
    }
    let texts = names.map(|names| names.0.iter().map(String::as_str));
    NamePatterns::parse(texts).map_err(|error| TokenRefusal::Grant(claim, error.to_string()))
}
