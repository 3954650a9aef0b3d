//! The dashboard with a million ended jobs: from 'something failed' to 'it succeeded', in a browser.

use serde_json::Value;
use testkit::eventually;

use crate::{
    admin_at_scale::{MILLION, fill},
    chromium::{Browser, BrowserOptions},
    kit::GalleyKit,
};

#[tokio::test(flavor = "multi_thread")]
async fn among_a_million_jobs_those_that_failed_are_found_retried_and_seen_to_succeed() {
    let kit = GalleyKit::start().await;
    let Some(browser) = Browser::start(&kit.gateway.url(""), BrowserOptions::default()).await else { return };
    fill(&kit, MILLION).await;
    let failed = MILLION.timed_out();
    browser.open("/ui/jobs").await;
    browser.wait_for("Next page").await;
    browser.fill("[data-search]", "state:discarded error:\"timed out\"").await;
    browser.click_text("Search").await;
    let searched = || async { browser.path().await.contains("timed").then_some(()) };
    eventually("the search is answered", searched).await;
    let rows = browser.run("return document.querySelectorAll('tbody .state-discarded').length").await;
    assert_eq!(rows, 50, "a page of those that failed, and of nothing else");
    browser.click("input[name=everything]").await;
    browser.click("button[formaction='/ui/jobs/retry']").await;
    browser.wait_for(&format!("Retry {failed} jobs that match")).await;
    browser.click_text(&format!("Retry {failed} jobs")).await;
    browser.wait_for(&format!("{failed} jobs are tried again")).await;
    let queues = MILLION.queue_names().join(",");
    let _worker = kit.start_worker(&[("GALLEY__QUEUE_WORKER__QUEUES", queues.as_str())]).await;
    let all_done = || async {
        let query = "/ojs/v1/admin/jobs?q=state:completed%20error:%22timed%20out%22%20ended_since:10m&limit=1000";
        let done: Value = kit.get(query).await.json().await.ok()?;
        (done["items"].as_array().map(Vec::len) == Some(failed)).then_some(())
    };
    eventually("all that failed have succeeded", all_done).await;
    browser.open("/ui/jobs?q=state%3Acompleted+error%3A%22timed+out%22+ended_since%3A-PT10M").await;
    browser.wait_for("completed").await;
    browser.open("/ui/jobs?q=state%3Adiscarded+error%3A%22timed+out%22").await;
    browser.wait_for("No job matches").await;
    // Every page still answers, and the overview knows the queues
    browser.open("/").await;
    browser.wait_for("q0").await;
    assert!(!browser.text().await.contains("were looked at so far"));
    browser.close().await;
}
