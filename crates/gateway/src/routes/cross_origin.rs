//! Lets pages of the sites in `gateway.allowed_origins` read channels. They may change nothing: `context` refuses such
//! requests before.

use actix_cors::Cors;
use actix_web::{
    http::{Method, header},
    middleware::Condition,
};
use common::name::Origin;

/// How long a browser may cache the permission, in seconds.
const PREFLIGHT_MAX_AGE_S: usize = 3600;
/// The header that browsers send when they reconnect to an event stream.
const LAST_EVENT_ID: &str = "last-event-id";

/// Lets pages of these origins read a resource. Without origins it does nothing.
pub(super) fn read_only_cors(origins: &[Origin]) -> Condition<Cors> {
    let cors = Cors::default()
        .allowed_methods([Method::GET, Method::HEAD])
        .allowed_headers([
            header::ACCEPT.as_str(),
            header::AUTHORIZATION.as_str(),
            header::CACHE_CONTROL.as_str(),
            LAST_EVENT_ID,
        ])
        .max_age(PREFLIGHT_MAX_AGE_S);
    let cors = origins.iter().fold(cors, |cors, origin| cors.allowed_origin(origin.as_str()));
    Condition::new(!origins.is_empty(), cors)
}
