//! The seed's handlers: a task off the list, and a dish that takes a random time to eat.

use std::time::Duration;

use common::{redis::bridge, text};

use super::{Context, HandlerError, HandlerResult, Handlers};

pub(super) fn register(handlers: &mut Handlers) {
    handlers.add("demo.task", task);
    handlers.add("demo.dish", dish);
}

/// Logs `Task get 7` as the seed's worker does; the result is the element.
async fn task(context: Context) -> HandlerResult {
    let args = context.args()?;
    let [argument] = args.as_slice() else { return Err(HandlerError::bad_arguments("demo.task takes one argument")) };
    let element = bridge::element(argument.get());
    tracing::info!(id = %context.id, "Task get {}", text::printable(&element));
    Ok(Some(argument.get().to_owned()))
}

/// An eater eats a dish and says how many are left, in the seed's words.
async fn dish(context: Context) -> HandlerResult {
    let args = context.args()?;
    let [dish] = args.as_slice() else {
        return Err(HandlerError::bad_arguments("demo.dish takes one argument, the dish"));
    };
    let dish: u64 =
        serde_json::from_str(dish.get()).map_err(|error| HandlerError::bad_arguments(&error.to_string()))?;
    let stats = context.jobs.stats(&context.queue).await.map_err(|error| HandlerError::failed(error.to_string()))?;
    tracing::info!("吃货{} 吃了 {dish} 饭 --- 还有 {} 饭可以吃", context.worker, stats.available);
    tokio::time::sleep(Duration::from_millis(rand::random_range(0..1000))).await;
    Ok(Some(format!("{{\"ate\":{dish}}}")))
}
