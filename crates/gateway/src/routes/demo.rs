//! The original demo: a list that workers pop, a channel that every subscriber receives. Routes, keys and bytes are the
//! original's, so its workers and listeners still work. Its two links are on the overview of the dashboard.

use actix_web::{HttpResponse, http::header, web};
use common::name::{ChannelName, quoted};
use model::message::NewMessage;
use store::StoreError;

use super::ApiResult;
use crate::{error::ApiError, services::Services};

const DEMO_LIST: &str = "task:prodcons:queue";
const DEMO_CHANNEL: &str = "task:pubsub:channel";

/// The demo can be switched off: its routes are then like any path that does not exist.
fn check_served(services: &Services, path: &str) -> Result<(), ApiError> {
    if services.settings.gateway.demo_routes { Ok(()) } else { Err(ApiError::not_found(quoted(path))) }
}

pub(super) async fn prodcons(services: web::Data<Services>) -> ApiResult {
    check_served(&services, "/prodcons")?;
    let element: u8 = rand::random_range(0..10);
    services.redis.push_element(DEMO_LIST, element.to_string().as_bytes()).await?;
    tracing::info!("lpush {DEMO_LIST} -- {element}");
    Ok(redirect_home())
}

pub(super) async fn pubsub(services: web::Data<Services>) -> ApiResult {
    check_served(&services, "/pubsub")?;
    let element: u8 = rand::random_range(0..10);
    let channel: ChannelName = DEMO_CHANNEL.parse().map_err(|_| StoreError::Damaged(DEMO_CHANNEL.to_owned()))?;
    let element = element.to_string();
    services.publish(&channel, NewMessage::plain(element.as_bytes()), None).await?;
    tracing::info!("publish {DEMO_CHANNEL} -- {element}");
    Ok(redirect_home())
}

fn redirect_home() -> HttpResponse {
    // Each visit changes something, so no cache may answer
    HttpResponse::Found()
        .insert_header((header::LOCATION, "/"))
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .finish()
}
