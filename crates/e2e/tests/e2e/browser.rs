//! The original demo's page in a real browser with JavaScript switched off.

use fantoccini::Locator;
use testkit::eventually;

use crate::{
    chromium::{Browser, BrowserOptions},
    kit::GalleyKit,
};

#[tokio::test]
async fn both_links_work_without_javascript() {
    let kit = GalleyKit::start().await;
    let listener = kit.start_pubsub_worker().await;
    let worker = kit.start_worker(&[]).await;
    let options = BrowserOptions { is_without_scripts: true, ..BrowserOptions::default() };
    let Some(browser) = Browser::start(&kit.gateway.url(""), options).await else { return };
    browser.open("/").await;
    for link in ["Producer and consumer", "发布订阅者模式", "生产消费者模式", "Publish and subscribe"] {
        // The page that the link before led to may still be on its way
        let click = || async { browser.client.find(Locator::LinkText(link)).await.ok()?.click().await.ok() };
        eventually(link, click).await;
        assert_eq!(browser.client.current_url().await.expect("a URL").path(), "/", "the link leads back to the page");
    }
    let heading = browser.client.find(Locator::Css("h3")).await.expect("a heading").text().await.expect("text");
    assert_eq!(heading, "Redis Message Queue");
    browser.close().await;
    for service in [&worker, &listener] {
        eventually("it gets the task", || async { (!service.tasks().is_empty()).then_some(()) }).await;
    }
}
