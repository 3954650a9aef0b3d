//! The cookie of somebody who uses the dashboard, and the forms that only a page of ours can send.
//!
//! Everybody gets a cookie with a random text. Of it follow the token that every form carries (another site can neither read
//! the page nor the cookie) and the fingerprint under which Redis knows a session. Without keys the cookie serves for the
//! forms alone.

use std::fmt::Write;

use actix_web::{
    FromRequest, HttpRequest,
    dev::Payload,
    http::header::{self, HeaderMap},
};
use futures_util::future::LocalBoxFuture;
use rand::{Rng, distr::Alphanumeric, rng};
use sha2::{Digest, Sha256};

use crate::{
    body::RawBody,
    error::{ApiError, ErrorCode},
    request_check::query_pairs,
};

const COOKIE: &str = "galley_session";
/// 43 letters and digits have 256 bits.
const COOKIE_LENGTH: usize = 43;
/// The field of a form that holds the token.
const TOKEN_FIELD: &str = "csrf";

/// The cookie of a browser.
#[derive(Clone)]
pub(crate) struct SessionCookie(String);

impl SessionCookie {
    pub(crate) fn generate() -> Self {
        Self(rng().sample_iter(Alphanumeric).take(COOKIE_LENGTH).map(char::from).collect())
    }

    /// The cookie that came with a request.
    pub(crate) fn of(headers: &HeaderMap) -> Option<Self> {
        let text = cookie(headers, COOKIE)?;
        let is_ours = text.len() == COOKIE_LENGTH && text.bytes().all(|byte| byte.is_ascii_alphanumeric());
        is_ours.then(|| Self(text.to_owned()))
    }

    /// Under which Redis knows the session.
    pub(crate) fn fingerprint(&self) -> String {
        self.derive("session")
    }

    /// What a form must hold.
    pub(crate) fn form_token(&self) -> String {
        self.derive("form")
    }

    /// The value of `Set-Cookie`. The browser forgets it when it is closed, or when the server forgets the session.
    pub(crate) fn to_header(&self, is_secure: bool) -> String {
        let secure = if is_secure { "; Secure" } else { "" };
        format!("{COOKIE}={}; Path=/; HttpOnly; SameSite=Strict{secure}", self.0)
    }

    /// Makes the browser forget its cookie.
    pub(crate) fn removal() -> String {
        format!("{COOKIE}=; Path=/; HttpOnly; SameSite=Strict; Max-Age=0")
    }

    fn derive(&self, purpose: &str) -> String {
        let digest = Sha256::digest(format!("galley {purpose} {}", self.0));
        digest.iter().fold(String::with_capacity(64), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    }
}

/// A cookie of a request.
pub(super) fn cookie<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    let all = headers.get_all(header::COOKIE).filter_map(|value| value.to_str().ok());
    all.flat_map(|line| line.split(';')).find_map(|pair| {
        let (key, value) = pair.trim().split_once('=')?;
        (key == name).then_some(value)
    })
}

/// The fields of a form that a page of the dashboard sent.
pub(crate) struct Form(Vec<(String, String)>);

impl Form {
    /// A field; empty if it is absent.
    pub(crate) fn get(&self, name: &str) -> &str {
        self.0.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value.as_str())
    }

    /// A field that says something, without blanks around it.
    pub(crate) fn given(&self, name: &str) -> Option<&str> {
        Some(self.get(name).trim()).filter(|text| !text.is_empty())
    }

    /// Every value of a field.
    pub(crate) fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        self.0.iter().filter(move |(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// A whole number in a field, if it says something.
    pub(crate) fn number<N: std::str::FromStr>(&self, name: &str) -> Result<Option<N>, ApiError> {
        let parsed = self.given(name).map(|text| text.parse().map_err(|_| wrong_number(name, text)));
        parsed.transpose()
    }
}

fn wrong_number(name: &str, text: &str) -> ApiError {
    ApiError::invalid(format!("{name} must be a whole number, got {}", common::name::quoted(text)))
}

impl FromRequest for Form {
    type Error = ApiError;
    type Future = LocalBoxFuture<'static, Result<Self, ApiError>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let (headers, body) = (request.headers().clone(), RawBody::from_request(request, payload));
        Box::pin(async move {
            let form = Self(query_pairs(&String::from_utf8_lossy(&body.await?.0)));
            // No page makes a browser send this header, so a program did
            let is_program = headers.contains_key(header::AUTHORIZATION);
            if is_program {
                return Ok(form);
            }
            let Some(cookie) = SessionCookie::of(&headers) else {
                return Err(ApiError::invalid(
                    "forms of the dashboard need its cookie: allow cookies, and load the page",
                ));
            };
            if is_same(&cookie.form_token(), form.get(TOKEN_FIELD)) {
                return Ok(form);
            }
            let message = "this form was not sent by a page of the dashboard, or the page is old: load it again";
            Err(ApiError::new(ErrorCode::CrossSiteRequest, message))
        })
    }
}

/// Compares in a time that does not depend on where the texts differ.
fn is_same(expected: &str, given: &str) -> bool {
    Sha256::digest(expected) == Sha256::digest(given)
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::HeaderValue;

    use super::*;

    #[test]
    fn a_cookie_is_found_among_others_and_its_token_and_fingerprint_differ() {
        let cookie = SessionCookie::generate();
        let line = format!("a=b; {COOKIE}={}; galley_theme=dark", cookie.0);
        let headers: HeaderMap =
            [(header::COOKIE, HeaderValue::from_str(&line).expect("a header"))].into_iter().collect();
        let found = SessionCookie::of(&headers).expect("the cookie");
        assert_eq!(found.form_token(), cookie.form_token());
        assert_ne!(found.form_token(), found.fingerprint());
        assert!(!found.fingerprint().contains(&cookie.0));
        let bad: HeaderMap = [(header::COOKIE, HeaderValue::from_static("galley_session=short"))].into_iter().collect();
        assert!(SessionCookie::of(&bad).is_none());
    }
}
