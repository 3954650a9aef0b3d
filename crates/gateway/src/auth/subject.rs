//! What the path of a request names: a key that is limited to queues, channels or a namespace may use only its own.
//!
//! A name outside is refused with 403. What is looked up by an id and lies outside is not found, as if it did not exist.

use std::sync::Arc;

use actix_web::{dev::ServiceRequest, http::Method, web::Data};
use common::name::{ChannelName, QueueName, quoted};
use model::access::Access;
use percent_encoding::percent_decode_str;

use crate::{
    auth::Caller,
    error::{ApiError, ErrorCode},
    routes::table::{RouteRule, Subject},
    services::Services,
};

/// Checks what the path names.
pub(super) async fn check(request: &ServiceRequest, rule: &RouteRule, access: &Access) -> Result<(), ApiError> {
    let caller = || Caller::new(Arc::new(access.clone()), None);
    match rule.subject {
        Subject::Queue if !access.has_every_queue() => {
            let queue = parameter(rule.path, request.path()).parse::<QueueName>().ok();
            // What is no name cannot be the key's
            queue
                .filter(|queue| access.has_queue(queue))
                .map(drop)
                .ok_or_else(|| ApiError::name_not_allowed("this queue"))
        }
        Subject::Channel if !access.has_every_channel() => {
            let channel = parameter(rule.path, request.path()).parse::<ChannelName>().ok();
            channel
                .filter(|channel| access.has_channel(channel))
                .map(drop)
                .ok_or_else(|| ApiError::name_not_allowed("this channel"))
        }
        Subject::Job if !access.has_every_queue() => {
            let id = parameter(rule.path, request.path());
            check_job(services(request)?, &id, access).await
        }
        Subject::Workflow if !access.has_every_queue() => {
            let id = parameter(rule.path, request.path());
            check_workflow(services(request)?, &id, access).await
        }
        Subject::Cron if !access.has_every_queue() => {
            let name = parameter(rule.path, request.path());
            let Ok(parsed) = name.parse() else { return Ok(()) };
            let found = services(request)?.jobs.cron().get(&parsed).await?;
            let is_seen = found.is_none_or(|entry| caller().has_cron_entry(&entry));
            found_or(is_seen, format_args!("cron entry {}", quoted(&name)))
        }
        Subject::Subscription => {
            let name = parameter(rule.path, request.path());
            if request.method() == Method::PUT && !access.holds(&name) {
                return Err(ApiError::name_not_allowed(format_args!("subscription {}", quoted(&name))));
            }
            let Ok(parsed) = name.parse() else { return Ok(()) };
            let found = services(request)?.subscriptions.get(&parsed).await?;
            match found {
                Some(found) if caller().has_subscription(&found) => Ok(()),
                Some(_) if request.method() == Method::PUT => {
                    Err(ApiError::name_not_allowed(format_args!("subscription {}", quoted(&name))))
                }
                Some(_) => found_or(false, format_args!("subscription {}", quoted(&name))),
                None => Ok(()),
            }
        }
        Subject::Everything => {
            let message = "this concerns the whole installation, and the key is limited to a part of it";
            Err(ApiError::new(ErrorCode::NameNotAllowed, message))
        }
        _ => Ok(()),
    }
}

/// A job of another queue is not found. One that does not exist is left to the handler.
async fn check_job(services: &Services, id: &str, access: &Access) -> Result<(), ApiError> {
    let Ok(parsed) = id.parse() else { return Ok(()) };
    let Some(located) = services.jobs.locate(parsed).await? else { return Ok(()) };
    let is_seen = located.queue().is_some_and(|queue| access.has_queue(&queue));
    found_or(is_seen, format_args!("job {}", quoted(id)))
}

/// A workflow with a job of another queue is not found.
async fn check_workflow(services: &Services, id: &str, access: &Access) -> Result<(), ApiError> {
    let Ok(parsed) = id.parse() else { return Ok(()) };
    let queues = services.workflows.workflow_queues(parsed).await?;
    let is_seen = queues.is_none_or(|queues| queues.iter().all(|queue| access.has_queue(queue)));
    found_or(is_seen, format_args!("workflow {}", quoted(id)))
}

fn found_or(is_seen: bool, what: std::fmt::Arguments<'_>) -> Result<(), ApiError> {
    if is_seen { Ok(()) } else { Err(ApiError::not_found(what)) }
}

fn services(request: &ServiceRequest) -> Result<&Services, ApiError> {
    let services = request.app_data::<Data<Services>>().map(Data::get_ref);
    services.ok_or_else(|| ApiError::internal("no services"))
}

/// The part of a path that stands where its pattern has a placeholder, decoded.
fn parameter(pattern: &str, path: &str) -> String {
    let mut parts = pattern.split('/').zip(path.split('/'));
    let given = parts.find(|(part, _)| part.starts_with('{')).map_or("", |(_, given)| given);
    percent_decode_str(given).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_where_the_pattern_has_its_placeholder() {
        let pattern = "/ojs/v1/queues/{queue}/stats";
        assert_eq!(parameter(pattern, "/ojs/v1/queues/a.b/stats"), "a.b");
        assert_eq!(parameter(pattern, "/ojs/v1/queues/a%2Eb/stats"), "a.b");
        assert_eq!(parameter(pattern, "/ojs/v1/queues/a%252Eb/stats"), "a%2Eb");
        assert_eq!(parameter("/v1/channels/{channel}", "/v1/channels/x"), "x");
    }
}
