//! The routes, one file per resource.

mod admin;
mod audit;
mod batch;
mod channels;
mod checkpoint;
mod consistency_check;
mod cron;
mod cross_origin;
mod dead_letters;
mod debug;
mod deliveries;
mod demo;
mod error_list;
mod events;
mod job_logs;
mod jobs;
mod keys;
mod list_answer;
mod log_level;
mod ndjson;
mod openapi;
mod output;
mod progress;
mod push_rules;
mod queues;
mod reference;
#[cfg(test)]
mod scopes_document;
mod signals;
mod statistics;
mod subscriptions;
mod system;
pub(crate) mod table;
mod tokens;
mod worker_list;
mod workers;
mod workflows;

use actix_web::{HttpResponse, HttpResponseBuilder, guard, http::StatusCode, web};

use common::{json::ObjectWriter, name::Origin};
use model::access::Scope::{
    AdminRead, AdminWrite, ChannelsPublish, ChannelsSubscribe, JobsRead, JobsWrite, Subscriptions, Work,
};

pub(crate) use admin::{job_actions::edit_refusal, system::MAX_REASON_BYTES};
pub(crate) use channels::{filters_too_long, open_reader, parse_delta, parse_filter, parse_since};
pub(crate) use consistency_check::{TimedCheck, parse_check_cursor};
pub(crate) use cron::{cron_not_found, parse_cron_name};
pub(crate) use deliveries::{is_rule_pattern, resend_message};
pub(crate) use jobs::{enqueue_parsed, job_not_found, parse_job, parse_job_id, state_change_response};
pub(crate) use keys::{KeyRequest, make_key, revoke_key, rotate_key};
pub(crate) use log_level::set_log_level;
pub(crate) use openapi::DOCUMENT as OPENAPI_DOCUMENT;
pub(crate) use queues::{delete_empty, known_queue};
pub(crate) use signals::send_signal;
pub(crate) use subscriptions::{
    ProgressDetail, parse_subscription_name, progress_json, seek_subscription, subscription_not_found,
};
pub(crate) use worker_list::find_worker;

use crate::{auth::Caller, dashboard, error::ApiError, media_type::OJS_JSON};
use table::{Need, routes};

pub(crate) type ApiResult = Result<HttpResponse, ApiError>;

routes! {
    // The router tries them in this order: those of every job and message come first, and pages last
    "/ojs/v1/jobs" { POST jobs::enqueue => Need::Has(JobsWrite), Named; }
    "/ojs/v1/jobs/batch" { POST batch::enqueue => Need::Has(JobsWrite), Named; }
    "/v1/channels/{channel}/messages" (read_only_cors) {
        GET channels::history => Need::Has(ChannelsSubscribe), Channel;
        POST channels::publish => Need::Has(ChannelsPublish), Channel;
    }
    "/ojs/v1/workers/fetch" { POST workers::fetch => Need::Has(Work), Named; }
    "/ojs/v1/workers/ack" { POST workers::ack => Need::Has(Work), Named; }
    "/ojs/v1/workers/nack" { POST workers::nack => Need::Has(Work), Named; }
    "/ojs/v1/workers/heartbeat" { POST workers::heartbeat => Need::Has(Work), Named; }
    "/ojs/v1/jobs/stream" { POST ndjson::enqueue => Need::Has(JobsWrite), Named; }
    "/ojs/v1/jobs/{id}" {
        GET jobs::show => Need::Has(JobsRead), Job;
        DELETE jobs::cancel => Need::Has(JobsWrite), Job;
    }
    "/" { GET dashboard::overview_page => Need::Optional, Nothing; }
    // Without HEAD, because each visit changes something
    "/prodcons" { VISIT demo::prodcons => Need::Nothing, Nothing; }
    "/pubsub" { VISIT demo::pubsub => Need::Nothing, Nothing; }
    "/openapi.json" { GET openapi::document => Need::Nothing, Nothing; }
    "/ojs/manifest" { GET system::manifest => Need::AnyKey, Nothing; }
    // A refusal links to it
    "/ojs/errors" { GET error_list::page => Need::Nothing, Nothing; }
    "/docs" { GET reference::page => Need::Nothing, Nothing; }
    "/ojs/v1/health" { GET system::health => Need::Health, Nothing; }
    "/ojs/v1/jobs/{id}/progress" {
        GET progress::show => Need::Has(JobsRead), Job;
        POST progress::report => Need::Has(Work), Job;
        PUT progress::report => Need::Has(Work), Job;
    }
    "/ojs/v1/jobs/{id}/checkpoint" {
        GET checkpoint::show => Need::Has(JobsRead), Job;
        POST checkpoint::save => Need::Has(Work), Job;
        PUT checkpoint::save => Need::Has(Work), Job;
        DELETE checkpoint::delete => Need::Has(Work), Job;
    }
    "/ojs/v1/jobs/{id}/output" {
        VISIT output::follow => Need::Has(JobsRead), Job;
        POST output::write => Need::Has(Work), Job;
    }
    "/ojs/v1/jobs/{id}/signals" {
        GET signals::list => Need::Has(JobsRead), Job;
        POST signals::send => Need::Has(JobsWrite), Job;
    }
    "/ojs/v1/jobs/{id}/logs" { GET job_logs::read => Need::Has(JobsRead), Job; }
    "/ojs/v1/jobs/{id}/activate" { POST jobs::activate => Need::Has(JobsWrite), Job; }
    "/ojs/v1/jobs/{id}/retry" { POST jobs::retry => Need::Has(JobsWrite), Job; }
    "/ojs/v1/workers/log" { POST job_logs::write => Need::Has(Work), Named; }
    "/ojs/v1/workers" { GET worker_list::list => Need::Has(AdminRead), Everything; }
    "/ojs/v1/workers/{id}" { GET worker_list::show => Need::Has(AdminRead), Everything; }
    "/ojs/v1/workers/{id}/quiet" { POST worker_list::quiet => Need::Has(AdminWrite), Everything; }
    "/ojs/v1/workers/{id}/resume" { POST worker_list::resume => Need::Has(AdminWrite), Everything; }
    "/ojs/v1/workers/{id}/terminate" { POST worker_list::terminate => Need::Has(AdminWrite), Everything; }
    "/ojs/v1/dead-letter" {
        GET dead_letters::list => Need::Has(JobsRead), List;
        DELETE dead_letters::delete_many => Need::Has(AdminWrite), List;
    }
    "/ojs/v1/dead-letter/stats" { GET dead_letters::stats => Need::Has(AdminRead), List; }
    "/ojs/v1/dead-letter/retry" { POST dead_letters::retry_many => Need::Has(AdminWrite), List; }
    "/ojs/v1/dead-letter/{id}" {
        GET dead_letters::show => Need::Has(JobsRead), Job;
        DELETE dead_letters::delete => Need::Has(JobsWrite), Job;
    }
    "/ojs/v1/dead-letter/{id}/retry" { POST dead_letters::retry => Need::Has(JobsWrite), Job; }
    "/ojs/v1/queues" { GET queues::list => Need::Has(AdminRead), List; }
    "/ojs/v1/queues/{queue}" {
        GET queues::stats => Need::Has(AdminRead), Queue;
        DELETE queues::delete => Need::Has(AdminWrite), Queue;
    }
    "/ojs/v1/workflows" {
        GET workflows::list => Need::Has(JobsRead), List;
        POST workflows::create => Need::Has(JobsWrite), Named;
    }
    "/ojs/v1/workflows/{id}" {
        GET workflows::show => Need::Has(JobsRead), Workflow;
        DELETE workflows::cancel => Need::Has(JobsWrite), Workflow;
    }
    "/ojs/v1/cron" {
        GET cron::list => Need::Has(JobsRead), List;
        POST cron::register => Need::Has(JobsWrite), Named;
    }
    "/ojs/v1/cron/{name}" {
        GET cron::show => Need::Has(JobsRead), Cron;
        DELETE cron::delete => Need::Has(JobsWrite), Cron;
        PATCH cron::update => Need::Has(JobsWrite), Cron;
    }
    "/ojs/v1/cron/{name}/enable" { POST cron::enable => Need::Has(JobsWrite), Cron; }
    "/ojs/v1/cron/{name}/disable" { POST cron::disable => Need::Has(JobsWrite), Cron; }
    "/ojs/v1/cron/{name}/trigger" { POST cron::trigger => Need::Has(JobsWrite), Cron; }
    "/ojs/v1/cron/{name}/next" { GET cron::next_runs => Need::Has(JobsRead), Cron; }
    "/ojs/v1/queues/{queue}/stats" { GET queues::stats => Need::Has(AdminRead), Queue; }
    "/ojs/v1/queues/{queue}/pause" { POST queues::pause => Need::Has(AdminWrite), Queue; }
    "/ojs/v1/queues/{queue}/resume" { POST queues::resume => Need::Has(AdminWrite), Queue; }
    "/ojs/v1/queues/{queue}/drain" { POST queues::drain => Need::Has(AdminWrite), Queue; }
    "/ojs/v1/queues/{queue}/limits" { PUT queues::set_limits => Need::Has(AdminWrite), Queue; }
    "/ojs/v1/queues/{queue}/jobs" { DELETE queues::purge => Need::Has(AdminWrite), Queue; }
    "/ojs/v1/admin/stats" { GET statistics::show => Need::Has(AdminRead), List; }
    "/ojs/v1/admin/stats/history" { GET statistics::history => Need::Has(AdminRead), List; }
    "/ojs/v1/admin/jobs" { GET admin::jobs::list => Need::Has(AdminRead), List; }
    "/ojs/v1/admin/jobs/bulk/retry" { POST admin::bulk::retry => Need::Has(AdminWrite), List; }
    "/ojs/v1/admin/jobs/bulk/cancel" { POST admin::bulk::cancel => Need::Has(AdminWrite), List; }
    "/ojs/v1/admin/jobs/bulk/delete" { POST admin::bulk::delete => Need::Has(AdminWrite), List; }
    "/ojs/v1/admin/jobs/{id}" {
        GET admin::jobs::show => Need::Has(AdminRead), Job;
        PATCH admin::job_actions::change => Need::Has(AdminWrite), Job;
        DELETE admin::job_actions::delete => Need::Has(AdminWrite), Job;
    }
    "/ojs/v1/admin/jobs/{id}/retry" { POST admin::job_actions::retry => Need::Has(AdminWrite), Job; }
    "/ojs/v1/admin/jobs/{id}/cancel" { POST admin::job_actions::cancel => Need::Has(AdminWrite), Job; }
    "/ojs/v1/admin/jobs/{id}/reschedule" { POST admin::job_actions::reschedule => Need::Has(AdminWrite), Job; }
    "/ojs/v1/admin/queues" { GET admin::queues::list => Need::Has(AdminRead), List; }
    "/ojs/v1/admin/queues/{queue}" { GET admin::queue_config::show => Need::Has(AdminRead), Queue; }
    "/ojs/v1/admin/queues/{queue}/pause" { POST admin::queues::pause => Need::Has(AdminWrite), Queue; }
    "/ojs/v1/admin/queues/{queue}/resume" { POST admin::queues::resume => Need::Has(AdminWrite), Queue; }
    "/ojs/v1/admin/queues/{queue}/jobs" { DELETE admin::queues::purge => Need::Has(AdminWrite), Queue; }
    "/ojs/v1/admin/queues/{queue}/config" { PUT admin::queue_config::update => Need::Has(AdminWrite), Queue; }
    "/ojs/v1/admin/workers" { GET admin::workers::list => Need::Has(AdminRead), Everything; }
    "/ojs/v1/admin/workers/{id}" {
        GET admin::workers::show => Need::Has(AdminRead), Everything;
        DELETE admin::workers::deregister => Need::Has(AdminWrite), Everything;
    }
    "/ojs/v1/admin/workers/{id}/quiet" { POST admin::workers::quiet => Need::Has(AdminWrite), Everything; }
    "/ojs/v1/admin/dead-letter" {
        GET admin::jobs::list_dead_letters => Need::Has(AdminRead), List;
        DELETE admin::dead_letters::purge => Need::Has(AdminWrite), List;
    }
    "/ojs/v1/admin/dead-letter/stats" { GET dead_letters::stats => Need::Has(AdminRead), List; }
    "/ojs/v1/admin/dead-letter/retry" { POST admin::bulk::retry_dead_letters => Need::Has(AdminWrite), List; }
    "/ojs/v1/admin/dead-letter/{id}" {
        GET admin::dead_letters::show => Need::Has(AdminRead), Job;
        DELETE dead_letters::delete => Need::Has(AdminWrite), Job;
    }
    "/ojs/v1/admin/dead-letter/{id}/retry" { POST dead_letters::retry => Need::Has(AdminWrite), Job; }
    "/ojs/v1/admin/system/maintenance" {
        GET admin::system::show_maintenance => Need::Has(AdminRead), Everything;
        POST admin::system::set_maintenance => Need::Has(AdminWrite), Everything;
    }
    "/ojs/v1/admin/system/config" { GET admin::system::config => Need::Has(AdminRead), Everything; }
    "/ojs/v1/admin/fsck" {
        GET consistency_check::report => Need::Has(AdminRead), Named;
        POST consistency_check::repair => Need::Has(AdminWrite), Named;
    }
    "/v1/admin/log-level" {
        GET log_level::show => Need::Has(AdminRead), Everything;
        PUT log_level::set => Need::Has(AdminWrite), Everything;
        DELETE log_level::reset => Need::Has(AdminWrite), Everything;
    }
    "/v1/admin/debug" { GET debug::show => Need::Has(AdminRead), Everything; }
    "/v1/admin/debug/processes" { GET debug::show_all => Need::Has(AdminRead), Everything; }
    "/v1/admin/audit" { GET audit::list => Need::Has(AdminRead), Everything; }
    "/v1/tokens" { POST tokens::create => Need::AnyKey, Nothing; }
    "/ojs/v1/events" { GET events::list => Need::Has(JobsRead), List; }
    "/ojs/v1/events/stream" { VISIT events::stream => Need::Has(JobsRead), List; }
    "/ojs/v1/jobs/{id}/events" { VISIT events::job_events => Need::Has(JobsRead), Job; }
    "/ojs/v1/queues/{queue}/events" { VISIT events::queue_events => Need::Has(JobsRead), Queue; }
    "/v1/channels" (read_only_cors) { GET channels::list => Need::Has(ChannelsSubscribe), List; }
    "/v1/channels/{channel}/stream" (read_only_cors) {
        VISIT channels::stream_channel => Need::Has(ChannelsSubscribe), Channel;
    }
    "/v1/stream" (read_only_cors) { VISIT channels::stream_channels => Need::Has(ChannelsSubscribe), Named; }
    "/v1/ws" { VISIT channels::connect => Need::Has(ChannelsSubscribe), Named; }
    "/v1/channels/{channel}" (read_only_cors) { GET channels::show => Need::Has(ChannelsSubscribe), Channel; }
    "/v1/channels/{channel}/members" (read_only_cors) {
        GET channels::members => Need::Has(ChannelsSubscribe), Channel;
    }
    "/v1/channels/{channel}/messages/batch" { POST channels::publish_batch => Need::Has(ChannelsPublish), Channel; }
    "/v1/subscriptions" { GET subscriptions::list => Need::Has(Subscriptions), List; }
    "/v1/subscriptions/{name}" {
        GET subscriptions::show => Need::Has(Subscriptions), Subscription;
        PUT subscriptions::put => Need::Has(Subscriptions), Subscription;
        DELETE subscriptions::delete => Need::Has(Subscriptions), Subscription;
    }
    "/v1/subscriptions/{name}/attempts" {
        GET deliveries::of_subscription => Need::Has(Subscriptions), Subscription;
    }
    "/v1/subscriptions/{name}/attempts/{id}/resend" {
        POST deliveries::resend => Need::Has(Subscriptions), Subscription;
    }
    "/v1/push-rules" { GET push_rules::list => Need::Has(AdminRead), Everything; }
    "/v1/push-rules/{rule}" { GET push_rules::show => Need::Has(AdminRead), Everything; }
    "/v1/push-rules/{rule}/attempts" { GET deliveries::of_rule => Need::Has(AdminRead), Everything; }
    "/v1/push-rules/{rule}/attempts/{id}/resend" { POST deliveries::resend_job => Need::Has(AdminWrite), Everything; }
    "/v1/subscriptions/{name}/pause" { POST subscriptions::pause => Need::Has(Subscriptions), Subscription; }
    "/v1/subscriptions/{name}/resume" { POST subscriptions::resume => Need::Has(Subscriptions), Subscription; }
    "/v1/admin/keys" {
        GET keys::list => Need::Has(AdminRead), Key;
        POST keys::create => Need::Has(AdminWrite), Key;
    }
    "/v1/admin/keys/{id}" {
        GET keys::show => Need::Has(AdminRead), Key;
        PATCH keys::update => Need::Has(AdminWrite), Key;
        DELETE keys::revoke => Need::Has(AdminWrite), Key;
    }
    "/v1/admin/keys/{id}/rotate" { POST keys::rotate => Need::Has(AdminWrite), Key; }
    "/v1/subscriptions/{name}/seek" { POST subscriptions::seek => Need::Has(Subscriptions), Subscription; }
    "/ui/assets/{file}" { GET dashboard::asset => Need::Nothing, Nothing; }
    "/ui/login" {
        GET dashboard::login_page => Need::Nothing, Nothing;
        POST dashboard::log_in => Need::Nothing, Nothing;
    }
    "/ui/logout" { POST dashboard::log_out => Need::Nothing, Nothing; }
    "/ui/preferences" { VISIT dashboard::set_preferences => Need::Nothing, Nothing; }
    "/ui/live" { VISIT dashboard::live::follow => Need::AnyKey, Nothing; }
    "/ui/jobs" { GET dashboard::jobs_page => Need::Has(JobsRead), List; }
    "/ui/jobs/{id}" {
        GET dashboard::job_page => Need::Has(JobsRead), Job;
        // Of many jobs: the action stands where the id of one does
        POST dashboard::jobs_act => Need::Both(AdminWrite, JobsWrite), Named;
    }
    "/ui/jobs/{id}/raw" { GET dashboard::raw_job => Need::Has(JobsRead), Job; }
    "/ui/jobs/{id}/{action}" { POST dashboard::job_act => Need::Both(AdminWrite, JobsWrite), Job; }
    "/ui/try" {
        GET dashboard::try_page => Need::Has(JobsRead), List;
        POST dashboard::try_enqueue => Need::Both(AdminWrite, JobsWrite), Named;
    }
    "/ui/workflows" { GET dashboard::workflows_page => Need::Has(JobsRead), List; }
    "/ui/workflows/{id}" { GET dashboard::workflow_page => Need::Has(JobsRead), Workflow; }
    "/ui/workflows/{id}/{action}" { POST dashboard::workflow_act => Need::Both(AdminWrite, JobsWrite), Workflow; }
    "/ui/channels" { GET dashboard::channels_page => Need::Has(ChannelsSubscribe), List; }
    "/ui/channels/{channel}" { GET dashboard::channel_page => Need::Has(ChannelsSubscribe), Channel; }
    "/ui/channels/{channel}/publish" {
        POST dashboard::channel_publish => Need::Both(AdminWrite, ChannelsPublish), Channel;
    }
    "/ui/subscriptions" { GET dashboard::subscriptions_page => Need::Has(Subscriptions), List; }
    "/ui/subscriptions/{name}" { GET dashboard::subscription_page => Need::Has(Subscriptions), Subscription; }
    "/ui/subscriptions/{name}/{action}" {
        POST dashboard::subscription_act => Need::Both(AdminWrite, Subscriptions), Subscription;
    }
    "/ui/keys" {
        GET dashboard::keys_page => Need::Has(AdminRead), Key;
        POST dashboard::make_key => Need::Has(AdminWrite), Key;
    }
    "/ui/keys/{id}/{action}" { POST dashboard::key_act => Need::Has(AdminWrite), Key; }
    "/ui/audit" { GET dashboard::audit_page => Need::Has(AdminRead), Everything; }
    "/ui/queues" { GET dashboard::queues_page => Need::Has(AdminRead), List; }
    "/ui/queues/{queue}" { GET dashboard::queue_page => Need::Has(AdminRead), Queue; }
    "/ui/queues/{queue}/{action}" { POST dashboard::queue_act => Need::Has(AdminWrite), Queue; }
    "/ui/workers" { GET dashboard::workers_page => Need::Has(AdminRead), Everything; }
    "/ui/log-level/{action}" { POST dashboard::log_level_act => Need::Has(AdminWrite), Everything; }
    "/ui/workers/{id}/{action}" { POST dashboard::worker_act => Need::Has(AdminWrite), Everything; }
    "/ui/cron" { GET dashboard::cron_page => Need::Has(JobsRead), List; }
    "/ui/cron/{name}/{action}" { POST dashboard::cron_act => Need::Both(AdminWrite, JobsWrite), Cron; }
    "/ui/maintenance/{action}" { POST dashboard::maintenance_act => Need::Has(AdminWrite), Everything; }
    "/ui/check" { GET dashboard::check_page => Need::Has(AdminRead), Named; }
    "/ui/check/repair" { POST dashboard::check_repair => Need::Has(AdminWrite), Named; }
    "/ui/push-rules" { GET dashboard::push_rules_page => Need::Has(AdminRead), Everything; }
    "/ui/push-rules/{rule}" { GET dashboard::push_rule_page => Need::Has(AdminRead), Everything; }
    "/ui/push-rules/{rule}/{action}" {
        POST dashboard::push_rule_act => Need::Both(AdminWrite, JobsWrite), Everything;
    }
    "/ui/dead-letters" { GET dashboard::dead_letters_page => Need::Has(JobsRead), List; }
    "/ui/dead-letters/{action}" { POST dashboard::dead_letter_act => Need::Both(AdminWrite, JobsWrite), List; }
}

/// A response in plain JSON.
fn json_response(answer: ObjectWriter) -> HttpResponse {
    HttpResponse::Ok().content_type("application/json").body(answer.finish())
}

/// A response of the Open Job Spec.
fn ojs_response(status: StatusCode, json: String) -> HttpResponse {
    ojs_response_builder(status).body(json)
}

fn ojs_response_builder(status: StatusCode) -> HttpResponseBuilder {
    let mut response = HttpResponse::build(status);
    response.content_type(OJS_JSON);
    response
}

/// `{"job": ...}` around the JSON of a job.
fn job_json(job: &str) -> String {
    ["{\"job\":", job, "}"].concat()
}

/// Adds `warnings` to the JSON of an answer, which is an object, if there are any.
fn with_warnings(mut answer: String, warnings: &[String]) -> String {
    if !warnings.is_empty() && answer.ends_with('}') {
        answer.pop();
        answer.push_str(",\"warnings\":");
        answer.push_str(&serde_json::json!(warnings).to_string());
        answer.push('}');
    }
    answer
}

/// The most names among which the one that was meant is looked for.
const MAX_COMPARED_NAMES: usize = 1000;

/// A switch in a query.
fn parse_flag(name: &str, given: Option<&str>) -> Result<Option<bool>, ApiError> {
    match given {
        None => Ok(None),
        Some("true") => Ok(Some(true)),
        Some("false") => Ok(Some(false)),
        Some(other) => {
            Err(ApiError::invalid(format!("{name} must be true or false, got {}", common::name::quoted(other))))
        }
    }
}

/// The largest `offset`: what it passes over is read all the same, and one request reads no more than that.
const MAX_OFFSET: usize = 10_000;

/// How much of a list to pass over, which clients of the Open Job Spec send instead of `after`.
fn parse_offset(given: Option<&str>) -> Result<usize, ApiError> {
    let Some(text) = given else { return Ok(0) };
    text.parse().ok().filter(|number| *number <= MAX_OFFSET).ok_or_else(|| {
        let got = common::name::quoted(text);
        ApiError::invalid(format!("offset must be an integer from 0 to {MAX_OFFSET}, got {got}; further on use after"))
    })
}

/// A whole number in a query, within bounds.
fn parse_bounded(name: &str, given: Option<&str>, default: usize, most: usize) -> Result<usize, ApiError> {
    let Some(text) = given else { return Ok(default) };
    let number = text.parse().ok().filter(|number| (1..=most).contains(number));
    number.ok_or_else(|| {
        ApiError::invalid(format!("{name} must be an integer from 1 to {most}, got {}", common::name::quoted(text)))
    })
}
