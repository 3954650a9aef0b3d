//! The routes, one file per resource.

mod batch;
mod channels;
mod consistency_check;
mod cron;
mod cross_origin;
mod dead_letters;
mod demo;
mod error_list;
mod events;
mod jobs;
mod ndjson;
mod openapi;
mod progress;
mod queues;
mod subscriptions;
mod system;
mod worker_list;
mod workers;
mod workflows;

use actix_web::{HttpResponse, HttpResponseBuilder, http::StatusCode, web};

use common::{health::read_only_resource, name::Origin};

pub(crate) use channels::parse_since;
pub(crate) use openapi::DOCUMENT as OPENAPI_DOCUMENT;

use crate::{error::ApiError, media_type::OJS_JSON};

type ApiResult = Result<HttpResponse, ApiError>;

/// Adds every route. Pages from `origins` may read channels.
#[expect(clippy::too_many_lines, reason = "one table: all routes")]
pub(crate) fn configure(config: &mut web::ServiceConfig, origins: &[Origin]) {
    let readable = || cross_origin::read_only_cors(origins);
    config
        .service(read_only_resource("/", demo::index))
        // Without HEAD, because each visit changes something
        .service(web::resource("/prodcons").route(web::get().to(demo::prodcons)))
        .service(web::resource("/pubsub").route(web::get().to(demo::pubsub)))
        .service(read_only_resource("/openapi.json", openapi::document))
        .service(read_only_resource("/ojs/manifest", system::manifest))
        .service(read_only_resource("/ojs/errors", error_list::page))
        .service(read_only_resource("/ojs/v1/health", system::health))
        .service(web::resource("/ojs/v1/jobs").route(web::post().to(jobs::enqueue)))
        .service(web::resource("/ojs/v1/jobs/batch").route(web::post().to(batch::enqueue)))
        .service(web::resource("/ojs/v1/jobs/stream").route(web::post().to(ndjson::enqueue)))
        .service(read_only_resource("/ojs/v1/jobs/{id}", jobs::show).route(web::delete().to(jobs::cancel)))
        .service(
            web::resource("/ojs/v1/jobs/{id}/progress")
                .route(web::post().to(progress::report))
                .route(web::put().to(progress::report)),
        )
        .service(web::resource("/ojs/v1/jobs/{id}/activate").route(web::post().to(jobs::activate)))
        .service(web::resource("/ojs/v1/jobs/{id}/retry").route(web::post().to(jobs::retry)))
        .service(web::resource("/ojs/v1/workers/fetch").route(web::post().to(workers::fetch)))
        .service(web::resource("/ojs/v1/workers/ack").route(web::post().to(workers::ack)))
        .service(web::resource("/ojs/v1/workers/nack").route(web::post().to(workers::nack)))
        .service(web::resource("/ojs/v1/workers/heartbeat").route(web::post().to(workers::heartbeat)))
        .service(read_only_resource("/ojs/v1/workers", worker_list::list))
        .service(read_only_resource("/ojs/v1/workers/{id}", worker_list::show))
        .service(web::resource("/ojs/v1/workers/{id}/quiet").route(web::post().to(worker_list::quiet)))
        .service(web::resource("/ojs/v1/workers/{id}/resume").route(web::post().to(worker_list::resume)))
        .service(web::resource("/ojs/v1/workers/{id}/terminate").route(web::post().to(worker_list::terminate)))
        .service(
            read_only_resource("/ojs/v1/dead-letter", dead_letters::list)
                .route(web::delete().to(dead_letters::delete_many)),
        )
        .service(read_only_resource("/ojs/v1/dead-letter/stats", dead_letters::stats))
        .service(web::resource("/ojs/v1/dead-letter/retry").route(web::post().to(dead_letters::retry_many)))
        .service(
            read_only_resource("/ojs/v1/dead-letter/{id}", dead_letters::show)
                .route(web::delete().to(dead_letters::delete)),
        )
        .service(web::resource("/ojs/v1/dead-letter/{id}/retry").route(web::post().to(dead_letters::retry)))
        .service(read_only_resource("/ojs/v1/queues", queues::list))
        .service(read_only_resource("/ojs/v1/queues/{queue}", queues::stats).route(web::delete().to(queues::delete)))
        .service(read_only_resource("/ojs/v1/workflows", workflows::list).route(web::post().to(workflows::create)))
        .service(
            read_only_resource("/ojs/v1/workflows/{id}", workflows::show).route(web::delete().to(workflows::cancel)),
        )
        .service(read_only_resource("/ojs/v1/cron", cron::list).route(web::post().to(cron::register)))
        .service(
            read_only_resource("/ojs/v1/cron/{name}", cron::show)
                .route(web::delete().to(cron::delete))
                .route(web::patch().to(cron::update)),
        )
        .service(web::resource("/ojs/v1/cron/{name}/enable").route(web::post().to(cron::enable)))
        .service(web::resource("/ojs/v1/cron/{name}/disable").route(web::post().to(cron::disable)))
        .service(web::resource("/ojs/v1/cron/{name}/trigger").route(web::post().to(cron::trigger)))
        .service(read_only_resource("/ojs/v1/cron/{name}/next", cron::next_runs))
        .service(read_only_resource("/ojs/v1/queues/{queue}/stats", queues::stats))
        .service(web::resource("/ojs/v1/queues/{queue}/pause").route(web::post().to(queues::pause)))
        .service(web::resource("/ojs/v1/queues/{queue}/resume").route(web::post().to(queues::resume)))
        .service(web::resource("/ojs/v1/queues/{queue}/drain").route(web::post().to(queues::drain)))
        .service(web::resource("/ojs/v1/queues/{queue}/limits").route(web::put().to(queues::set_limits)))
        .service(web::resource("/ojs/v1/queues/{queue}/jobs").route(web::delete().to(queues::purge)))
        .service(read_only_resource("/ojs/v1/admin/jobs", dead_letters::list_jobs))
        .service(
            read_only_resource("/ojs/v1/admin/fsck", consistency_check::report)
                .route(web::post().to(consistency_check::repair)),
        )
        .service(read_only_resource("/ojs/v1/events", events::list))
        .service(web::resource("/ojs/v1/events/stream").route(web::get().to(events::stream)))
        .service(web::resource("/ojs/v1/jobs/{id}/events").route(web::get().to(events::job_events)))
        .service(web::resource("/ojs/v1/queues/{queue}/events").route(web::get().to(events::queue_events)))
        .service(read_only_resource("/v1/channels", channels::list).wrap(readable()))
        .service(
            web::resource("/v1/channels/{channel}/stream")
                .route(web::get().to(channels::stream_channel))
                .wrap(readable()),
        )
        .service(web::resource("/v1/stream").route(web::get().to(channels::stream_channels)).wrap(readable()))
        .service(web::resource("/v1/ws").route(web::get().to(channels::connect)))
        .service(read_only_resource("/v1/channels/{channel}", channels::show).wrap(readable()))
        .service(
            read_only_resource("/v1/channels/{channel}/messages", channels::history)
                .route(web::post().to(channels::publish))
                .wrap(readable()),
        )
        .service(web::resource("/v1/channels/{channel}/messages/batch").route(web::post().to(channels::publish_batch)))
        .service(read_only_resource("/v1/subscriptions", subscriptions::list))
        .service(
            read_only_resource("/v1/subscriptions/{name}", subscriptions::show)
                .route(web::put().to(subscriptions::put))
                .route(web::delete().to(subscriptions::delete)),
        )
        .service(web::resource("/v1/subscriptions/{name}/pause").route(web::post().to(subscriptions::pause)))
        .service(web::resource("/v1/subscriptions/{name}/resume").route(web::post().to(subscriptions::resume)))
        .service(web::resource("/v1/subscriptions/{name}/seek").route(web::post().to(subscriptions::seek)));
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

/// A whole number in a query, within bounds.
fn parse_bounded(name: &str, given: Option<&str>, default: usize, most: usize) -> Result<usize, ApiError> {
    let Some(text) = given else { return Ok(default) };
    let number = text.parse().ok().filter(|number| (1..=most).contains(number));
    number.ok_or_else(|| {
        ApiError::invalid(format!("{name} must be an integer from 1 to {most}, got {}", common::name::quoted(text)))
    })
}
