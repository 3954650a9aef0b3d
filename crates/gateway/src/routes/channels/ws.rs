//! Opens WebSocket connections. A browser lets pages of any site open one, so pages of other sites are refused here.

use actix_web::{
    HttpRequest,
    body::MessageBody,
    http::header::{self, HeaderMap},
    rt, web,
};
use common::name::Origin;

use serde::Deserialize;

use super::open_reader;
use crate::{
    error::{ApiError, ErrorCode},
    message_socket::{AckWindow, FRAME_LIMIT_BYTES, MAX_WINDOW, MessageSocket, OutboundBytes},
    routes::{ApiResult, parse_bounded},
    startup::Services,
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct WebSocketQuery {
    window: Option<String>,
}

/// Opens a WebSocket.
pub(crate) async fn connect(
    request: HttpRequest,
    services: web::Data<Services>,
    query: web::Query<WebSocketQuery>,
    body: web::Payload,
) -> ApiResult {
    if is_cross_site(request.headers(), &services.settings.gateway.allowed_origins) {
        return Err(ApiError::new(ErrorCode::CrossSiteRequest, "a page of another site must not read channels here"));
    }
    let window = match query.window.as_deref() {
        Some(given) => Some(AckWindow::new(parse_bounded("window", Some(given), 1, MAX_WINDOW)?)),
        None => None,
    };
    let reader = open_reader(&services)?;
    let (response, session, frames) = actix_ws::handle(&request, body)
        .map_err(|_| ApiError::invalid("this path is for WebSocket: send the headers of its handshake"))?;
    let frames = frames.max_frame_size(FRAME_LIMIT_BYTES).aggregate_continuations();
    let frames = frames.max_continuation_size(FRAME_LIMIT_BYTES);
    let outbox = OutboundBytes::default();
    let socket =
        MessageSocket { services: services.get_ref().clone(), reader, session, outbound: outbox.clone(), window };
    rt::spawn(socket.run(frames));
    Ok(response.map_body(|_, body| outbox.wrap_body(body).boxed()))
}

/// Whether the request comes from a page of another site that is not among the allowed origins. Programs send no
/// origin.
fn is_cross_site(headers: &HeaderMap, allowed: &[Origin]) -> bool {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    let origin = text(header::ORIGIN.as_str());
    if origin.is_some_and(|origin| allowed.iter().any(|allowed| allowed.as_str() == origin)) {
        return false;
    }
    if text("sec-fetch-site").is_some_and(|site| ["cross-site", "same-site"].contains(&site)) {
        return true;
    }
    let Some(origin) = origin else { return false };
    let (scheme, of_page) = origin.split_once("://").unwrap_or_default();
    let port = match scheme {
        "http" => ":80",
        "https" => ":443",
        _ => return true,
    };
    let here = text(header::HOST.as_str()).unwrap_or_default();
    let bare = |host: &str| host.strip_suffix(port).unwrap_or(host).to_ascii_lowercase();
    bare(of_page) != bare(here)
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::{HeaderName, HeaderValue};

    use super::*;

    #[test]
    fn a_page_of_another_site_is_known_by_its_headers() {
        let allowed: [Origin; 1] = ["https://app.b:8443".parse().expect("an origin")];
        for (given, is_foreign) in [
            (vec![("host", "a:1")], false),
            (vec![("host", "a:1"), ("origin", "http://a:1")], false),
            (vec![("host", "A"), ("origin", "https://a:443")], false),
            (vec![("host", "a:80"), ("origin", "http://a")], false),
            (vec![("host", "a:1"), ("origin", "http://a:2")], true),
            (vec![("host", "a"), ("origin", "http://a.b")], true),
            (vec![("host", "a"), ("origin", "null")], true),
            (vec![("host", "a"), ("origin", "http://a"), ("sec-fetch-site", "same-site")], true),
            (vec![("host", "a"), ("origin", "http://a"), ("sec-fetch-site", "same-origin")], false),
            (vec![("host", "a"), ("origin", "https://app.b:8443"), ("sec-fetch-site", "cross-site")], false),
            (vec![("host", "a"), ("origin", "http://app.b:8443")], true),
            (vec![("host", "a"), ("origin", "https://app.b")], true),
            (vec![("host", "a"), ("sec-fetch-site", "cross-site")], true),
        ] {
            let pairs =
                given.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
            assert_eq!(is_cross_site(&pairs.collect(), &allowed), is_foreign, "{given:?}");
        }
    }
}
