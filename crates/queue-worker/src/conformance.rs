//! The handlers that the Open Job Spec's conformance document names, and `test.gather`, which returns the results it was
//! given by its workflow.

use std::{
    future::{Ready, ready},
    time::Duration,
};

use common::json::Object;
use serde_json::value::RawValue;

use super::{Context, HandlerError, Handlers, arguments};

type Answer = Result<Option<String>, HandlerError>;

pub(super) fn register(handlers: &mut Handlers) {
    handlers.add("test.echo", echo);
    handlers.add("test.noop", |_| async { Ok(None) });
    handlers.add("test.produce", produce);
    handlers.add("test.gather", |context| async move { Ok(Some(context.parent_results_json().to_owned())) });
    handlers.add("test.fail_once", |context| fail_until(&context, 2));
    handlers.add("test.fail_twice", |context| fail_until(&context, 3));
    handlers.add("test.fail_always", |context| fail_until(&context, u32::MAX));
    handlers.add("test.slow", slow);
    handlers.add("test.timeout", |_| std::future::pending());
    handlers.add("test.panic", |_| async { panic!("test.panic panics") });
}

/// The arguments, each as the JSON that came.
fn each_argument(context: &Context) -> Result<Vec<Box<RawValue>>, HandlerError> {
    arguments(&context.args()?)
}

/// Returns its arguments.
async fn echo(context: Context) -> Answer {
    Ok(Some(context.args()?.get().to_owned()))
}

/// Returns its first argument.
async fn produce(context: Context) -> Answer {
    Ok(each_argument(&context)?.first().map(|argument| argument.get().to_owned()))
}

fn fail_until(context: &Context, succeeds_at: u32) -> Ready<Answer> {
    if context.attempt() < succeeds_at {
        return ready(Err(HandlerError::retryable(format!("attempt {} fails as it should", context.attempt()))));
    }
    ready(Ok(None))
}

/// Sleeps for the milliseconds in its first argument: a number, or `duration_ms` of an object.
async fn slow(context: Context) -> Answer {
    let args = each_argument(&context)?;
    let millis = args.first().and_then(|argument| {
        let number = serde_json::from_str::<u64>(argument.get()).ok();
        number.or_else(|| {
            let object: Object = serde_json::from_str(argument.get()).ok()?;
            serde_json::from_str(object.get("duration_ms")?.get()).ok()
        })
    });
    tokio::time::sleep(Duration::from_millis(millis.unwrap_or(1000))).await;
    Ok(None)
}
