//! The handlers of the original demo: a task from the list, and a dish that takes a random time to eat.

use std::time::Duration;

use serde::Serialize;
use serde_json::value::RawValue;
use worker::{Context, HandlerError, WorkerBuilder, list_element};

/// Handles the job that the list bridge makes of each element.
pub(super) fn register_task(builder: WorkerBuilder) -> WorkerBuilder {
    builder.handler("demo.task", task)
}

/// Handles the dish that an eater eats.
pub(super) fn register_dish(builder: WorkerBuilder) -> WorkerBuilder {
    builder.handler("demo.dish", dish)
}

/// Logs `Task get 7` like the original worker; the result is the element.
async fn task(context: Context, (argument,): (Box<RawValue>,)) -> Result<Box<RawValue>, HandlerError> {
    tracing::info!(id = %context.id(), "Task get {}", list_element(&argument));
    Ok(argument)
}

#[derive(Serialize)]
struct DishResult {
    ate: u64,
}

/// Eats a dish and logs how many are left, in the words of the original demo.
async fn dish(context: Context, (dish,): (u64,)) -> Result<DishResult, HandlerError> {
    let left = context.waiting_jobs().await?;
    tracing::info!("吃货{} 吃了 {dish} 饭 --- 还有 {left} 饭可以吃", context.worker());
    tokio::time::sleep(Duration::from_millis(rand::random_range(0..1000))).await;
    Ok(DishResult { ate: dish })
}
