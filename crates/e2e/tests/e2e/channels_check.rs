//! What channels promise their readers, while everything breaks. `bench channels-check` is the same for longer, with more of
//! everything, and with subscriptions.

use e2e::channels_check::{Plan, run};

#[tokio::test(flavor = "multi_thread")]
async fn alone_every_reader_hears_what_was_acknowledged_once_and_in_order_whatever_breaks() {
    let plan =
        Plan { seconds: 7, rate: 300, sse: 20, ws: 6, channels: 4, gateways: 3, workers: 0, seed: rand::random() };
    let outcome = run(&plan).await.expect("it can be run");
    assert!(outcome.findings.is_empty(), "{plan:?}\n{}\n{outcome:#?}", outcome.findings.join("\n"));
    assert!(outcome.acknowledged > 100 && outcome.seen > outcome.acknowledged && outcome.resumes > 0, "{outcome:#?}");
    println!("{plan:?} {outcome:?}");
}
