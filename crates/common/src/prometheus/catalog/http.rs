//! The metrics of HTTP.

use super::{MetricSpec, counter, gauge, histogram};

pub(super) const HTTP: &[MetricSpec] = &[
    counter("galley_http_requests_total", &["route", "method", "status"], "requests", "Requests that the gateway answered").explained("requests that the gateway answered. `route` is the pattern, such as `/ojs/v1/jobs/{id}`"),
    histogram("galley_http_request_seconds", &["route"], "seconds", "From the head of a request to its answer"),
    counter("galley_http_malformed_requests_total", &[], "requests", "What clients sent that is no HTTP request: answered 400 or 431, and not logged"),
    gauge("galley_http_connections", &[], "connections", "Open connections of clients"),
    counter("galley_http_refused_connections_total", &["reason"], "connections", "Connections closed at once: too many in all or of one address").explained("closed at once: `total` (`gateway.max_connections`) or `address` (`gateway.max_connections_per_address`)"),
    counter("galley_tls_failed_handshakes_total", &[], "connections", "Clients that could not agree on TLS, or did not in time"),
    counter("galley_file_reloads_total", &["files", "result"], "reloads", "Times that files of keys or certificates changed: used or refused").explained("files of keys or certificates changed on the disk: `ok` or `failed`, which changes nothing. `files` is the setting that names them. Alert on `failed`"),
    gauge("galley_waiters", &[], "requests", "Requests that wait for results or jobs at this gateway").explained("requests that wait for results or jobs at this gateway. Limit: `gateway.max_waiters`"),
    gauge("galley_event_streams", &[], "streams", "Clients that follow events at this gateway").explained("clients that follow events at this gateway. Limit: `gateway.max_event_streams`"),
    gauge("galley_channel_readers", &[], "readers", "Streams and waiting history requests at this gateway").explained("streams and waiting history requests at this gateway. Limit: `channels.max_readers`"),
    counter("galley_key_limits_exceeded_total", &["kind"], "requests", "Requests of keys over their limit, answered 429").explained("requests of keys over their limit, answered 429. `kind`: `requests`, `body_bytes`"),
    counter("galley_token_keys_failed_total", &[], "readings", "Failed readings of the keys of the issuer of tokens"),
    counter("galley_audit_failed_total", &[], "actions", "Admin actions that are missing in the audit").explained("admin actions that are missing in the audit, because Redis did not take them"),
];
