//! The overview as HTML, rendered once for all who read it in one language and with the same rights: a further viewer costs
//! the bytes that are sent to it. What differs between them is the token of forms, which is put in last.

use std::sync::{Arc, PoisonError};

use actix_web::web::Bytes;

use super::{
    known::{DashboardState, Overview},
    shared_parts::{SentParts, SharedParts},
};
use crate::{
    dashboard::{overview::live_parts, page::Page},
    error::ApiError,
};

impl DashboardState {
    /// The overview for the reader of a page.
    pub(in crate::dashboard) fn render(
        &self,
        page: &mut Page,
        overview: &Arc<Overview>,
    ) -> Result<Arc<SharedParts>, ApiError> {
        let mut last = self.0.rendered.lock().unwrap_or_else(PoisonError::into_inner);
        let kind = (page.language.tag(), page.may_admin());
        if let Some((_, rendered)) = last.get(&kind).filter(|(shown, _)| Arc::ptr_eq(shown, overview)) {
            return Ok(rendered.clone());
        }
        page.now = overview.at;
        let rendered = Arc::new(SharedParts::new(live_parts(page, overview)?));
        last.insert(kind, (overview.clone(), rendered.clone()));
        Ok(rendered)
    }
}

/// An event with those parts that differ from what was sent.
pub(super) fn changed(parts: &SharedParts, sent: &mut SentParts, page: &Page) -> Bytes {
    let mut has_token = false;
    let event = parts.event_with(|part| {
        let differs = sent.differs(part.name, &part.digest);
        has_token |= differs && Page::has_token(&part.html);
        differs
    });
    if has_token { page.with_token(&String::from_utf8_lossy(&event)).into() } else { event }
}
