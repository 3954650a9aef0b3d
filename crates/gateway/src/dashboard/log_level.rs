//! The log level of all processes, on the page of workers: shown, set for a time, and returned to the settings.

use actix_web::web;
use common::telemetry::log_level;
use store::log_level::LogLevelOverride;

use super::{
    page::{Page, redirect},
    session::Form,
    unknown_action,
};
use crate::{
    error::ApiError,
    routes::{ApiResult, set_log_level},
    services::Services,
};

/// For how long it may be set: as in the API, and its text. The first is proposed.
const DURATIONS: [(&str, &str); 4] = [
    ("PT10M", "log_level.for_ten_minutes"),
    ("PT1H", "log_level.for_an_hour"),
    ("P1D", "log_level.for_a_day"),
    ("", "log_level.for_good"),
];

/// What a page shows of it.
pub(super) struct LogLevelPart {
    /// What is set for all processes.
    pub(super) set: Option<LogLevelOverride>,
    /// What the settings of this gateway say.
    pub(super) configured: String,
}

impl LogLevelPart {
    pub(super) async fn read(services: &Services) -> Result<Self, ApiError> {
        let (_, configured) = log_level::in_effect();
        Ok(Self { set: services.redis.log_level().await?, configured })
    }

    /// What is logged: by all processes, or by those that have the settings of this gateway.
    pub(super) fn level(&self) -> String {
        self.set.as_ref().map_or_else(|| self.configured.clone(), |set| set.level.to_string())
    }

    /// The choices of a form: the duration, and its text.
    #[expect(clippy::unused_self, reason = "templates call methods")]
    pub(super) fn durations(&self, page: &Page) -> [(&'static str, &'static str); 4] {
        DURATIONS.map(|(duration, key)| (duration, page.t(key)))
    }
}

pub(crate) async fn act(services: web::Data<Services>, action: web::Path<String>, form: Form) -> ApiResult {
    match action.as_str() {
        "set" => {
            let set = set_log_level(&services, form.get("level").trim(), form.given("for")).await?;
            Ok(redirect("/ui/workers", "log_level_set", &set.level.to_string()))
        }
        "reset" => {
            services.redis.reset_log_level().await?;
            Ok(redirect("/ui/workers", "log_level_reset", ""))
        }
        other => Err(unknown_action(other)),
    }
}
