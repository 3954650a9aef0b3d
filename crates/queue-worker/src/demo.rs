//! The seed's handlers: a task off the list, and a dish that takes a random time to eat.

use std::time::Duration;

use common::{redis::bridge, text};

use serde::Serialize;
use serde_json::value::RawValue;

use super::{Context, HandlerError, Handlers};

pub(super) fn register(handlers: &mut Handlers) {
    handlers.add_typed("demo.task", task);
    handlers.add_typed("demo.dish", dish);
}

/// Logs `Task get 7` as the seed's worker does; the result is the element.
async fn task(context: Context, (argument,): (Box<RawValue>,)) -> Result<Box<RawValue>, HandlerError> {
    let element = bridge::element(argument.get());
    tracing::info!(id = %context.id(), "Task get {}", text::printable(&element));
    Ok(argument)
}

#[derive(Serialize)]
struct Eaten {
    ate: u64,
}

/// An eater eats a dish and says how many are left, in the seed's words.
async fn dish(context: Context, (dish,): (u64,)) -> Result<Eaten, HandlerError> {
    let stats = context.jobs().stats(context.queue()).await?;
    tracing::info!("吃货{} 吃了 {dish} 饭 --- 还有 {} 饭可以吃", context.worker(), stats.available);
    tokio::time::sleep(Duration::from_millis(rand::random_range(0..1000))).await;
    Ok(Eaten { ate: dish })
}
