//! The rules of queue-workers that send jobs to an endpoint. They are in files of the workers: a rule is known here by its
//! attempts, for as long as those are kept.

use actix_web::web;
use common::{
    json::ObjectWriter,
    name::quoted,
    time::{self, Millis},
};
use serde::Deserialize;

use super::{ApiResult, deliveries::is_rule_pattern, json_response, list_answer::list_answer, parse_bounded};
use crate::{error::ApiError, services::Services};

/// Rules on a page: the default, and the most.
const DEFAULT_PAGE_SIZE: usize = 100;
const MAX_PAGE_SIZE: usize = 1000;

#[derive(Deserialize)]
pub(super) struct PushRulesQuery {
    after: Option<String>,
    limit: Option<String>,
}

/// The rules in the order of their patterns.
pub(super) async fn list(services: web::Data<Services>, query: web::Query<PushRulesQuery>) -> ApiResult {
    let limit = parse_bounded("limit", query.limit.as_deref(), DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)?;
    let mut rules = services.redis.push_rules().await?;
    rules.sort_unstable();
    rules.retain(|(pattern, _)| query.after.as_ref().is_none_or(|after| pattern > after));
    let has_more = rules.len() > limit;
    rules.truncate(limit);
    let items = rules_json(&services, &rules).await?;
    let next = rules.last().filter(|_| has_more).map(|(pattern, _)| pattern.as_str());
    Ok(json_response(list_answer(&items, next)))
}

/// One rule.
pub(super) async fn show(services: web::Data<Services>, rule: web::Path<String>) -> ApiResult {
    let known = if is_rule_pattern(&rule) { services.redis.push_rules().await? } else { Vec::new() };
    let found = known.into_iter().find(|(pattern, _)| *pattern == *rule);
    let found = found.ok_or_else(|| ApiError::not_found(format_args!("rule {} with attempts", quoted(&rule))))?;
    let json = rules_json(&services, &[found]).await?.pop().unwrap_or_default();
    let mut answer = ObjectWriter::default();
    answer.splice(&json);
    Ok(json_response(answer))
}

async fn rules_json(services: &Services, rules: &[(String, Millis)]) -> Result<Vec<String>, ApiError> {
    let patterns: Vec<&str> = rules.iter().map(|(pattern, _)| pattern.as_str()).collect();
    let counts = services.redis.count_rule_deliveries(&patterns).await?;
    let items = rules.iter().zip(counts).map(|((pattern, at), (delivered, failed))| {
        let mut attempts = ObjectWriter::default();
        attempts.number("delivered", delivered).number("failed", failed);
        let mut rule = ObjectWriter::default();
        rule.text("rule", pattern).text("last_attempt_at", &time::format(*at)).raw("attempts", &attempts.finish());
        rule.finish()
    });
    Ok(items.collect())
}
