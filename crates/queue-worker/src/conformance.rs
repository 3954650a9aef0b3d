//! The handlers that the Open Job Spec's conformance suites name, and `test.gather`, which returns its parents'
//! results.

use std::{future::ready, time::Duration};

use serde::de::IgnoredAny;
use serde_json::{Value, value::RawValue};
use worker::{Context, HandlerError, WorkerBuilder};

type Arguments = Vec<Box<RawValue>>;

pub(super) fn register(builder: WorkerBuilder) -> WorkerBuilder {
    builder
        .handler("test.echo", |_, arguments: Box<RawValue>| ready(Ok(arguments)))
        .handler("test.noop", |_, _: IgnoredAny| ready(Ok(())))
        .handler("test.produce", |_, arguments: Arguments| ready(Ok(arguments.into_iter().next())))
        .handler("test.gather", |context, _: IgnoredAny| ready(context.parent_results::<Box<RawValue>>()))
        .handler("test.fail_once", |context, _: IgnoredAny| ready(fail_until(&context, 2)))
        .handler("test.fail_twice", |context, _: IgnoredAny| ready(fail_until(&context, 3)))
        .handler("test.fail_always", |context, _: IgnoredAny| ready(fail_until(&context, u32::MAX)))
        .handler("test.slow", slow)
        .handler("test.timeout", |_, _: IgnoredAny| std::future::pending::<Result<(), HandlerError>>())
        .handler("test.block", block)
        .handler("test.panic", |_, _: IgnoredAny| async { panics() })
}

fn panics() -> Result<(), HandlerError> {
    panic!("test.panic panics")
}

fn fail_until(context: &Context, succeeds_at: u32) -> Result<(), HandlerError> {
    if context.attempt() < succeeds_at {
        return Err(HandlerError::retryable(format!("attempt {} fails as it should", context.attempt())));
    }
    Ok(())
}

/// Holds its thread for that many milliseconds: a handler that never yields, so that nothing can stop it.
async fn block(_: Context, (millis,): (u64,)) -> Result<(), HandlerError> {
    std::thread::sleep(Duration::from_millis(millis));
    Ok(())
}

/// Sleeps for the milliseconds in its first argument: a number, or `duration_ms` of an object.
async fn slow(_: Context, arguments: Vec<Value>) -> Result<(), HandlerError> {
    let millis = arguments.first().and_then(|first| first.as_u64().or_else(|| first.get("duration_ms")?.as_u64()));
    tokio::time::sleep(Duration::from_millis(millis.unwrap_or(1000))).await;
    Ok(())
}
