//! The credential of a request: `Authorization: Bearer`, or `?token=` where a browser opens a stream.

use actix_web::{
    dev::ServiceRequest,
    http::header::{self, HeaderMap},
};

use crate::{
    error::{ApiError, ErrorCode},
    request_check::query_pairs,
    routes::table::RouteRule,
    tokens::Tokens,
};

/// Streams that a page in a browser opens: it can send no header there, so a token may stand in the query.
const STREAMS: [&str; 7] = [
    "/ojs/v1/events",
    "/ojs/v1/events/stream",
    "/ojs/v1/jobs/{id}/events",
    "/ojs/v1/queues/{queue}/events",
    "/v1/channels/{channel}/stream",
    "/v1/stream",
    "/v1/ws",
];

/// The parameter with the token.
const TOKEN_PARAMETER: &str = "token";

/// The token in the query of a stream. Elsewhere nothing reads one. Keys are not accepted there: they live long, and an
/// address is kept in many places.
pub(super) fn token_in_query(request: &ServiceRequest, rule: &RouteRule) -> Result<Option<String>, ApiError> {
    if !STREAMS.contains(&rule.path) {
        return Ok(None);
    }
    let mut given = query_pairs(request.query_string()).into_iter().filter(|(name, _)| name == TOKEN_PARAMETER);
    let Some((_, token)) = given.next() else { return Ok(None) };
    if given.next().is_some() || request.headers().contains_key(header::AUTHORIZATION) {
        return Err(ApiError::new(ErrorCode::InvalidToken, "give one token, in the query or as Authorization"));
    }
    if !Tokens::is_token(&token) {
        let message = "an address holds no key, only a token: POST /v1/tokens makes one";
        return Err(ApiError::new(ErrorCode::InvalidToken, message));
    }
    Ok(Some(token))
}

/// The credential of a request. It is never part of an error.
pub(super) fn bearer(headers: &HeaderMap) -> Result<&str, ApiError> {
    let mut given = headers.get_all(header::AUTHORIZATION);
    let Some(first) = given.next() else { return Err(key_required()) };
    if given.next().is_some() {
        return Err(ApiError::new(ErrorCode::InvalidKey, "Authorization must be given once"));
    }
    let parts = first.to_str().ok().and_then(|text| text.trim().split_once(' '));
    match parts {
        Some((scheme, credential)) if scheme.eq_ignore_ascii_case("bearer") => Ok(credential.trim()),
        _ => Err(key_required()),
    }
}

fn key_required() -> ApiError {
    ApiError::new(ErrorCode::KeyRequired, "this request needs a key: send it as Authorization: Bearer KEY")
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::HeaderValue;

    use super::*;

    #[test]
    fn a_credential_is_told_from_none_and_from_two() {
        let read = |values: &[&'static str]| {
            let value = |value: &&'static str| (header::AUTHORIZATION, HeaderValue::from_static(value));
            let headers: HeaderMap = values.iter().map(value).collect();
            bearer(&headers).map(ToOwned::to_owned).map_err(|error| error.code())
        };
        assert_eq!(read(&["Bearer abc"]), Ok("abc".to_owned()));
        assert_eq!(read(&["bearer  abc "]), Ok("abc".to_owned()));
        for none in [&[][..], &["abc"], &["Basic YTpi"], &["Bearer"], &[""]] {
            assert_eq!(read(none), Err(ErrorCode::KeyRequired), "{none:?}");
        }
        assert_eq!(read(&["Bearer a", "Bearer a"]), Err(ErrorCode::InvalidKey));
    }
}
