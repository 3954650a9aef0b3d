//! The credential of a request: `Authorization: Bearer`.

use actix_web::http::header::{self, HeaderMap};

use crate::error::{ApiError, ErrorCode};

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
