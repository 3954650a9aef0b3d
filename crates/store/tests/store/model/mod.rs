//! The store against a model: random operations on both, and everything compared after each.
//!
//! Time does not matter here: delays are hours, and what is due is made so by hand.

mod facts;
mod operations;
mod run;
mod state;

use std::cell::Cell;

use proptest::{
    collection::vec,
    test_runner::{Config, TestCaseError, TestRunner},
};

use crate::kit::StoreKit;
use operations::{ModelOp, op_strategy};
use run::ModelRun;

/// Ten thousand operations and some, unless `MODEL_CASES` asks for more.
const CASES: u32 = 80;

#[test]
fn ten_thousand_random_operations_leave_redis_as_the_model_says() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let kit = runtime.block_on(async { StoreKit::with_variables(&[("GALLEY__JOBS__CRASH_BUDGET", "1")]) });
    let cases = std::env::var("MODEL_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(CASES);
    let config = Config {
        cases,
        failure_persistence: None,
        max_shrink_iters: 400,
        max_shrink_time: 60_000,
        ..Config::default()
    };
    let at = Cell::new(0);
    let run = |ops: &[ModelOp]| {
        runtime.block_on(async {
            let mut play = ModelRun::new(&kit).await;
            for (number, op) in ops.iter().enumerate() {
                at.set(number);
                play.run(op).await;
            }
        });
    };
    let outcome = TestRunner::new(config).run(&vec(op_strategy(), 128..=150), |ops| {
        // What is compared panics: that is one failed case, to be made smaller
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(&ops))).map_err(|panic| {
            let text = panic.downcast_ref::<String>().map_or("a panic", String::as_str);
            let done: Vec<&ModelOp> = ops[..=at.get()].iter().filter(|op| !matches!(op, ModelOp::Noop)).collect();
            TestCaseError::fail(format!("{text}\nafter {done:#?}"))
        })
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
}
