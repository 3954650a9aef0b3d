//! The style sheet, the script and the icon. Their addresses hold a fingerprint, so a browser keeps them for good and a new
//! version has another address.

use std::{fmt::Write, sync::LazyLock};

use actix_web::{HttpResponse, http::header, web};
use common::name::quoted;
use sha2::{Digest, Sha256};

use crate::{error::ApiError, routes::ApiResult};

struct Asset {
    /// The name without its fingerprint.
    name: &'static str,
    media_type: &'static str,
    content: &'static str,
    path: String,
}

static ASSETS: LazyLock<[Asset; 3]> = LazyLock::new(|| {
    [
        ("galley.css", "text/css; charset=utf-8", include_str!("../../assets/galley.css")),
        ("galley.js", "text/javascript; charset=utf-8", include_str!("../../assets/galley.js")),
        ("galley.svg", "image/svg+xml", include_str!("../../assets/galley.svg")),
    ]
    .map(|(name, media_type, content)| {
        let fingerprint = Sha256::digest(content)[..6].iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        });
        let (stem, end) = name.split_once('.').unwrap_or((name, ""));
        Asset { name, media_type, content, path: format!("/ui/assets/{stem}-{fingerprint}.{end}") }
    })
});

/// The address of an asset.
pub(crate) fn path_of(name: &str) -> &'static str {
    ASSETS.iter().find(|asset| asset.name == name).map_or("", |asset| asset.path.as_str())
}

pub(crate) async fn show(file: web::Path<String>) -> ApiResult {
    let wanted = format!("/ui/assets/{file}");
    let asset = ASSETS.iter().find(|asset| asset.path == wanted);
    let asset = asset.ok_or_else(|| ApiError::not_found(quoted(&wanted)))?;
    let mut response = HttpResponse::Ok();
    response.content_type(asset.media_type);
    response.insert_header((header::CACHE_CONTROL, "public, max-age=31536000, immutable"));
    // An image may be opened by itself: it runs nothing then either
    response.insert_header((header::CONTENT_SECURITY_POLICY, "default-src 'none'; sandbox"));
    Ok(response.body(asset.content))
}
