//! The original demo: a page with two links, a list that workers pop, a channel that every subscriber receives. Routes,
//! keys and bytes are the original's, so its workers and listeners still work.

use actix_web::{HttpResponse, http::header, web};
use common::name::ChannelName;
use model::message::NewMessage;
use store::StoreError;

use super::ApiResult;
use crate::services::Services;

const DEMO_LIST: &str = "task:prodcons:queue";
const DEMO_CHANNEL: &str = "task:pubsub:channel";

const INDEX_HTML: &str = r#"<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>Redis Message Queue</title></head>
<body>
<br>
<center><h3>Redis Message Queue</h3>
<br>
<a href="/prodcons">Producer and consumer</a> <span lang="zh"><a href="/prodcons">生产消费者模式</a></span>
<br>
<br>
<a href="/pubsub">Publish and subscribe</a> <span lang="zh"><a href="/pubsub">发布订阅者模式</a></span>
</center>
</body>
</html>
"#;

pub(super) async fn index() -> HttpResponse {
    HttpResponse::Ok().content_type("text/html; charset=utf-8").body(INDEX_HTML)
}

pub(super) async fn prodcons(services: web::Data<Services>) -> ApiResult {
    let element: u8 = rand::random_range(0..10);
    services.redis.push_element(DEMO_LIST, element.to_string().as_bytes()).await?;
    tracing::info!("lpush {DEMO_LIST} -- {element}");
    Ok(redirect_home())
}

pub(super) async fn pubsub(services: web::Data<Services>) -> ApiResult {
    let element: u8 = rand::random_range(0..10);
    let channel: ChannelName = DEMO_CHANNEL.parse().map_err(|_| StoreError::Damaged(DEMO_CHANNEL.to_owned()))?;
    let element = element.to_string();
    services.publish(&channel, &NewMessage::plain(element.as_bytes()), None).await?;
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
