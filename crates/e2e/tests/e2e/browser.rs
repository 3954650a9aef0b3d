//! The original demo's page in a real browser with JavaScript switched off.

use std::{
    net::TcpListener,
    process::{Child, Command, Stdio},
};

use fantoccini::{ClientBuilder, Locator};
use serde_json::json;
use testkit::eventually;

use crate::kit::GalleyKit;

struct WebDriverProcess(Child);

impl Drop for WebDriverProcess {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn both_links_work_without_javascript() {
    let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port").port();
    let driver = Command::new("chromedriver").arg(format!("--port={port}")).stdout(Stdio::null()).spawn();
    let Ok(driver) = driver else {
        testkit::skip("there is no chromedriver; `.ci/run` installs it");
        return;
    };
    let _driver = WebDriverProcess(driver);
    let kit = GalleyKit::start().await;
    let listener = kit.start_pubsub_worker().await;
    let worker = kit.start_worker(&[]).await;
    let options = json!({
        "args": ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
                 "--disable-background-networking", "--disable-component-update", "--disable-sync"],
        "prefs": { "profile.managed_default_content_settings.javascript": 2 },
    });
    let capabilities = serde_json::Map::from_iter([("goog:chromeOptions".to_owned(), options)]);
    let url = format!("http://127.0.0.1:{port}");
    let browser = eventually("the browser starts", || async {
        ClientBuilder::new(hyper_util::client::legacy::connect::HttpConnector::new())
            .capabilities(capabilities.clone())
            .connect(&url)
            .await
            .ok()
    })
    .await;
    browser.goto(&kit.gateway.url("/")).await.expect("the page loads");
    for link in ["Producer and consumer", "发布订阅者模式", "生产消费者模式", "Publish and subscribe"] {
        browser.find(Locator::LinkText(link)).await.expect(link).click().await.expect("it can be clicked");
        assert_eq!(browser.current_url().await.expect("a URL").path(), "/", "the link leads back to the page");
    }
    let heading = browser.find(Locator::Css("h3")).await.expect("a heading").text().await.expect("text");
    assert_eq!(heading, "Redis Message Queue");
    browser.close().await.expect("the browser closes");
    for service in [&worker, &listener] {
        eventually("it gets the task", || async { (!service.tasks().is_empty()).then_some(()) }).await;
    }
}
