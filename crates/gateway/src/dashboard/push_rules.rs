//! The pages of push rules: rules of queue-workers that send jobs to an endpoint, and their attempts. The rules themselves
//! are in files of the workers; a rule is known here by its attempts.

use actix_web::{HttpRequest, web};
use askama::Template;
use common::{id::JobId, name::quoted, time::Millis};
use model::{access::Scope, job::JobState};
use store::deliveries::{DeliveryId, DeliveryOwner};

use super::{
    attempts::{self, AttemptsTableQuery},
    page::{Page, redirect},
    plain::encode,
    session::Form,
    unknown_action,
};
use crate::{
    auth::Caller,
    error::ApiError,
    request_check::query_pairs,
    routes::{ApiResult, is_rule_pattern, job_not_found, state_change_response},
    services::Services,
};

#[derive(Template)]
#[template(path = "push_rules.html")]
struct PushRulesPage {
    page: Page,
    /// The pattern of each rule and its last attempt.
    rows: Vec<(String, Millis)>,
}

#[derive(Template)]
#[template(path = "push_rule.html")]
struct PushRulePage {
    page: Page,
    pattern: String,
    attempts: String,
}

impl PushRulesPage {
    #[expect(clippy::unused_self, reason = "templates call methods")]
    fn path(&self, pattern: &str) -> String {
        path_of(pattern)
    }
}

fn path_of(pattern: &str) -> String {
    format!("/ui/push-rules/{}", encode(pattern))
}

pub(crate) async fn page(request: HttpRequest, services: web::Data<Services>) -> ApiResult {
    let rows = services.redis.push_rules().await?;
    let page = Page::open(&request, "/ui/push-rules").await;
    let template = PushRulesPage { page, rows };
    template.page.render(&template)
}

fn check_pattern(pattern: &str) -> Result<(), ApiError> {
    if is_rule_pattern(pattern) { Ok(()) } else { Err(ApiError::not_found(format_args!("rule {}", quoted(pattern)))) }
}

pub(crate) async fn show(request: HttpRequest, services: web::Data<Services>, pattern: web::Path<String>) -> ApiResult {
    check_pattern(&pattern)?;
    let pairs = query_pairs(request.query_string());
    let value = |name: &str| pairs.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value.as_str());
    let page = Page::open(&request, "/ui/push-rules").await;
    let query = AttemptsTableQuery {
        owner: DeliveryOwner::Rule(pattern.to_string()),
        path: path_of(&pattern),
        outcome: value("outcome"),
        before: value("before"),
        may_resend: page.may_jobs(),
    };
    let attempts = attempts::table(&page, &services, query).await?;
    let template = PushRulePage { page, pattern: pattern.into_inner(), attempts };
    template.page.render(&template)
}

/// Sends the job of an attempt again: one that failed is retried, of one that succeeded another like it is filled into a form.
pub(crate) async fn act(
    caller: Caller,
    services: web::Data<Services>,
    path: web::Path<(String, String)>,
    form: Form,
) -> ApiResult {
    let (pattern, action) = path.into_inner();
    check_pattern(&pattern)?;
    if action != "resend" {
        return Err(unknown_action(&action));
    }
    let not_found = || ApiError::not_found(format_args!("attempt {}", quoted(form.get("attempt"))));
    let attempt: DeliveryId = form.get("attempt").parse().map_err(|_| not_found())?;
    let owner = DeliveryOwner::Rule(pattern);
    let logged = services.redis.find_delivery(&owner, attempt).await?.ok_or_else(not_found)?;
    let logged: serde_json::Value = serde_json::from_str(&logged).map_err(|_| not_found())?;
    let id: JobId = logged["job_id"].as_str().and_then(|id| id.parse().ok()).ok_or_else(not_found)?;
    let text = id.to_string();
    let (located, queue) = services.jobs.locate_with_queue(id).await?.ok_or_else(|| job_not_found(&text))?;
    caller.check_queue(Scope::JobsWrite, &queue)?;
    if located.state() == JobState::Completed {
        return Ok(redirect(&format!("/ui/try?from={id}"), "job_again", ""));
    }
    state_change_response(&text, services.jobs.retry_now(id).await?)?;
    Ok(redirect(&format!("/ui/jobs/{id}"), "job_retried", &text))
}
