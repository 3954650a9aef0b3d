//! Maintenance mode: switched on and off from the page of queues, and off from wherever a page says that it is on.

use actix_web::web;
use common::time;
use store::jobs::MaintenanceMode;

use super::{page::redirect, session::Form, unknown_action};
use crate::{
    error::ApiError,
    routes::{ApiResult, MAX_REASON_BYTES},
    services::Services,
};

pub(crate) async fn act(services: web::Data<Services>, action: web::Path<String>, form: Form) -> ApiResult {
    let to = form.given("to").unwrap_or("/ui/queues");
    match action.as_str() {
        "on" => {
            let reason = form.given("reason").map(ToOwned::to_owned);
            if reason.as_ref().is_some_and(|reason| reason.len() > MAX_REASON_BYTES) {
                return Err(ApiError::invalid(format!("reason must have at most {MAX_REASON_BYTES} bytes")));
            }
            let now = services.jobs.now().await?;
            let end = match form.given("until") {
                Some(text) => {
                    let end = time::parse_time(text, now);
                    Some(end.map_err(|error| ApiError::invalid(format!("until {error}")))?.at)
                }
                None => None,
            };
            let enabled_at = services.jobs.maintenance_mode().await?.map_or(now, |known| known.enabled_at);
            let mode = MaintenanceMode { reason, enabled_at, estimated_end: end };
            services.jobs.set_maintenance_mode(Some(&mode)).await?;
            Ok(redirect(to, "maintenance_on", ""))
        }
        "off" => {
            services.jobs.set_maintenance_mode(None).await?;
            Ok(redirect(to, "maintenance_off", ""))
        }
        other => Err(unknown_action(other)),
    }
}
