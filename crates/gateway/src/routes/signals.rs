//! The signals of a job: sending one, and those that came.

use actix_web::{HttpRequest, HttpResponse, http::StatusCode, web};
use common::{id::JobId, json::ObjectWriter, name::SignalName};
use model::job::{
    JobSignal,
    wait::{MAX_SIGNAL_BYTES, MAX_SIGNALS, MAX_SIGNALS_BYTES, data_of, is_same_json, is_signal_id},
};
use serde::Deserialize;
use serde_json::value::RawValue;
use store::jobs::{NewSignal, SignalOutcome};

use super::{
    ApiResult,
    jobs::{job_not_found, parse_job_id},
    list_answer::list_answer,
    ojs_response, parse_bounded,
};
use crate::{
    body::JsonBody,
    error::{ApiError, ErrorCode},
    idempotency::{IdempotencySeed, run_idempotent},
    services::Services,
};

#[derive(Deserialize)]
struct SendSignalRequest<'a> {
    name: String,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    id: Option<String>,
}

/// Sends a job a signal. One with an id, or a request with an `Idempotency-Key`, has one effect however often it is sent.
pub(super) async fn send(
    http: HttpRequest,
    services: web::Data<Services>,
    path: web::Path<String>,
    body: JsonBody,
) -> ApiResult {
    let id = parse_job_id(&path)?;
    let request: SendSignalRequest = body.parse()?;
    let name: SignalName = request.name.parse()?;
    let data = data_of(request.data);
    if data.len() > MAX_SIGNAL_BYTES {
        let message = format!("data must have at most {MAX_SIGNAL_BYTES} bytes, got {}", data.len());
        return Err(ApiError::new(ErrorCode::PayloadTooLarge, message));
    }
    if request.id.as_deref().is_some_and(|id| !is_signal_id(id)) {
        return Err(ApiError::invalid("id must be 1 to 128 printable ASCII characters without spaces"));
    }
    let given = request.id.as_deref();
    let content: [&[u8]; 3] = [name.as_str().as_bytes(), given.unwrap_or_default().as_bytes(), data.as_bytes()];
    run_idempotent(&http, &services, &content, async |seed| {
        let generated = || seed.map_or_else(uuid::Uuid::new_v4, IdempotencySeed::signal_id).to_string();
        let signal_id = given.map_or_else(generated, ToOwned::to_owned);
        send_signal(&services, id, &NewSignal { name: &name, id: &signal_id, data }).await
    })
    .await
}

/// Sends it, and answers.
pub(crate) async fn send_signal(services: &Services, id: JobId, new: &NewSignal<'_>) -> ApiResult {
    match services.jobs.signal(id, new.clone()).await? {
        SignalOutcome::Added { signal, resumed } => Ok(answer(StatusCode::CREATED, id, &signal, resumed)),
        SignalOutcome::Known(signal) if signal.name == *new.name && is_same_json(&signal.data, new.data) => {
            Ok(answer(StatusCode::OK, id, &signal, false))
        }
        SignalOutcome::Known(_) => {
            let message = format!("another signal of job {id} has the id {:?}", new.id);
            Err(ApiError::new(ErrorCode::Conflict, message))
        }
        SignalOutcome::Full => {
            let message =
                format!("job {id} has its signals: at most {MAX_SIGNALS}, and {MAX_SIGNALS_BYTES} bytes of them");
            Err(ApiError::new(ErrorCode::Conflict, message))
        }
        SignalOutcome::Over(state) => {
            let message = format!("job {id} is {state}: only a job that has not ended gets signals");
            Err(ApiError::new(ErrorCode::Conflict, message))
        }
        SignalOutcome::NotFound => Err(job_not_found(&id.to_string())),
    }
}

fn answer(status: StatusCode, id: JobId, signal: &JobSignal, resumed: bool) -> HttpResponse {
    let mut answer = ObjectWriter::with_capacity(signal.data.len() + 300);
    answer.text("job_id", &id.to_string()).raw("signal", &signal.to_json());
    answer.raw("resumed", if resumed { "true" } else { "false" });
    ojs_response(status, answer.finish())
}

#[derive(Deserialize)]
pub(super) struct SignalsQuery {
    after: Option<String>,
    limit: Option<String>,
}

/// The signals that came for a job, in their order.
pub(super) async fn list(
    services: web::Data<Services>,
    path: web::Path<String>,
    query: web::Query<SignalsQuery>,
) -> ApiResult {
    let id = parse_job_id(&path)?;
    let after = query.after.as_deref().map_or(Some(0), |text| text.parse().ok());
    let after: u64 = after.ok_or_else(|| ApiError::invalid("after must be the sequence of a signal"))?;
    let limit = parse_bounded("limit", query.limit.as_deref(), MAX_SIGNALS, MAX_SIGNALS)?;
    let (_, queue) = services.jobs.locate_with_queue(id).await?.ok_or_else(|| job_not_found(&path))?;
    let mut signals = services.jobs.read_signals(&queue, id).await?;
    signals.retain(|signal| signal.sequence > after);
    let has_more = signals.len() > limit;
    signals.truncate(limit);
    let next = signals.last().filter(|_| has_more).map(|signal| signal.sequence.to_string());
    let items: Vec<String> = signals.iter().map(JobSignal::to_json).collect();
    Ok(ojs_response(StatusCode::OK, list_answer(&items, next.as_deref()).finish()))
}
