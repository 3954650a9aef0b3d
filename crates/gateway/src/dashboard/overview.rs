//! The overview: how all is, what is wrong, and the two links of the original demo.

use std::sync::Arc;

use actix_web::{HttpRequest, web};
use askama::Template;

use super::{
    live::{
        SharedParts,
        known::{Overview, Parts},
    },
    page::Page,
};
use crate::{error::ApiError, routes::ApiResult, services::Services};

#[derive(Template)]
#[template(path = "overview.html")]
struct OverviewPage {
    page: Page,
    has_demo: bool,
    /// What the reader may see of the whole.
    parts: Option<Arc<SharedParts>>,
    /// Redis does not answer.
    is_away: bool,
}

impl OverviewPage {
    fn follow(&self) -> String {
        let have = self.parts.as_ref().map(|parts| parts.fingerprint()).unwrap_or_default();
        format!("/ui/live?page=overview&have={have}")
    }

    /// The plots of the last hour and day.
    fn history(&self) -> [&str; 4] {
        ["hour_rates", "hour_latency", "day_rates", "day_latency"].map(|name| self.part(name))
    }

    fn part(&self, name: &str) -> &str {
        self.parts.as_ref().map_or("", |parts| parts.part(name))
    }

    /// What is wrong, with forms of this reader.
    fn problems(&self) -> String {
        self.page.with_token(self.part("problems"))
    }
}

#[derive(Template)]
#[template(path = "overview_numbers.html")]
struct Numbers<'a> {
    page: &'a Page,
    overview: &'a Overview,
}

#[derive(Template)]
#[template(path = "overview_problems.html")]
struct Problems<'a> {
    page: &'a Page,
    overview: &'a Overview,
}

#[derive(Template)]
#[template(path = "overview_busiest.html")]
struct Busiest<'a> {
    page: &'a Page,
    overview: &'a Overview,
}

pub(crate) async fn page(request: HttpRequest, services: web::Data<Services>) -> ApiResult {
    let mut page = Page::open(&request, "/").await;
    let (mut parts, mut is_away) = (None, false);
    if page.sees_all() {
        match services.dashboard.overview(&services).await {
            Some(overview) => {
                parts = Some(services.dashboard.render(&mut page, &overview)?);
            }
            None => is_away = true,
        }
    }
    let has_demo = services.settings.gateway.demo_routes;
    let template = OverviewPage { page, has_demo, parts, is_away };
    template.page.render(&template)
}

/// The parts of the overview that move.
pub(super) fn live_parts(page: &Page, overview: &Arc<Overview>) -> Result<Parts, ApiError> {
    let render = |template: Result<String, askama::Error>| template.map_err(ApiError::internal);
    let overview = overview.as_ref();
    let said = if overview.problems.is_empty() {
        page.t("overview.fine").to_owned()
    } else {
        page.n("overview.problems_count", overview.problems.len())
    };
    Ok(Parts::from([
        ("numbers", render(Numbers { page, overview }.render())?),
        ("problems", render(Problems { page, overview }.render())?),
        ("busiest", render(Busiest { page, overview }.render())?),
        ("rates", overview.rates_plot.clone()),
        ("waiting", overview.waiting_plot.clone()),
        ("hour_rates", overview.history.hour_rates.clone()),
        ("hour_latency", overview.history.hour_latency.clone()),
        ("day_rates", overview.history.day_rates.clone()),
        ("day_latency", overview.history.day_latency.clone()),
        ("said", said),
    ]))
}
