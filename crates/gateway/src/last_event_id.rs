//! The last event that a client of an event stream saw.

use actix_web::HttpRequest;

use crate::request_check::query_pairs;

/// The id: from the header that browsers send when they reconnect, else from the query, for clients that cannot set a
/// header. Polyfills add `lastEventId` to the URL that they began with, so it is newer than the page's `last_event_id`
/// and the last of several is the newest.
pub(crate) fn last_event_id(request: &HttpRequest) -> Option<String> {
    let header = request.headers().get("last-event-id").map(|value| value.to_str().unwrap_or("?").to_owned());
    let pairs = query_pairs(request.query_string());
    let in_query = |wanted: &str| {
        pairs.iter().rev().find(|(name, value)| name == wanted && !value.is_empty()).map(|(_, value)| value.clone())
    };
    header.filter(|id| !id.is_empty()).or_else(|| in_query("lastEventId")).or_else(|| in_query("last_event_id"))
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;

    use super::*;

    #[test]
    fn the_newest_id_wins_wherever_it_is() {
        let read = |header: Option<&'static str>, query: &str| {
            let request = TestRequest::with_uri(&format!("/v1/stream?{query}"));
            let request = header.into_iter().fold(request, |request, id| request.insert_header(("last-event-id", id)));
            last_event_id(&request.to_http_request())
        };
        for (header, query, id) in [
            (None, "", None),
            (None, "last_event_id=1-1", Some("1-1")),
            (None, "lastEventId=1-2&last_event_id=1-1", Some("1-2")),
            (None, "lastEventId=1-2&lastEventId=1-3", Some("1-3")),
            (None, "lastEventId=&last_event_id=1-1", Some("1-1")),
            (Some("1-4"), "lastEventId=1-2", Some("1-4")),
            (Some(""), "lastEventId=1-2", Some("1-2")),
        ] {
            assert_eq!(read(header, query).as_deref(), id, "{header:?} {query}");
        }
    }
}
