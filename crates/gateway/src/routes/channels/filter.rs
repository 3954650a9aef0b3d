//! Filters of readers: which messages of what they follow they get.

use std::sync::Arc;

use model::subscription::MessageFilter;
use store::channels::{MAX_FILTERS_BYTES, SharedFilter};

use crate::{error::ApiError, services::Services};

/// The longest filter, in bytes.
const MAX_FILTER_BYTES: usize = 8 * 1024;

/// A filter as a client wrote it; none if it lets everything pass.
pub(crate) fn parse_filter(services: &Services, text: &str) -> Result<Option<Arc<SharedFilter>>, ApiError> {
    if text.len() > MAX_FILTER_BYTES {
        let got = text.len();
        return Err(ApiError::invalid(format!("filter must have at most {MAX_FILTER_BYTES} bytes, got {got}")));
    }
    let filter = MessageFilter::parse(text, services.settings.gateway.json_depth_limit).map_err(ApiError::invalid)?;
    Ok(services.channel_hub.share_filter(filter))
}

/// The error for more filters than a connection may have.
pub(crate) fn filters_too_long() -> ApiError {
    ApiError::invalid(format!("the filters of a connection must have at most {MAX_FILTERS_BYTES} bytes together"))
}
