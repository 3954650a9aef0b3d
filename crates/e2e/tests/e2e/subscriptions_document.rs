//! The examples of `docs/subscriptions.md`, run from there.

use std::process::Command;

use serde_json::Value;
use testkit::RedisServer;

use crate::kit::GalleyKit;

const DOCUMENT: &str = include_str!("../../../../docs/subscriptions.md");

fn examples(language: &str) -> Vec<&'static str> {
    let opening = format!("\n```{language}\n");
    DOCUMENT.split(opening.as_str()).skip(1).filter_map(|rest| rest.split("\n```\n").next()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_example_is_answered_as_a_success() {
    let kit = GalleyKit::start_with(RedisServer::start(), &[]).await;
    let examples = examples("sh");
    assert!(examples.len() >= 5, "the document was read");
    for example in examples {
        let output = Command::new("bash").args(["-euc", example]).env("GALLEY", kit.gateway.url("")).output();
        let output = output.expect("curl");
        assert!(output.status.success(), "{example}: {}", String::from_utf8_lossy(&output.stdout));
        let answers: Vec<Value> =
            serde_json::Deserializer::from_slice(&output.stdout).into_iter().collect::<Result<_, _>>().expect("JSON");
        assert!(!answers.is_empty(), "{example}");
    }
}

#[tokio::test]
async fn every_filter_is_allowed() {
    let kit = GalleyKit::start().await;
    let filters = examples("json");
    assert!(filters.len() >= 2, "the document was read");
    for filter in filters {
        let body = format!(r#"{{"channels":["c"],"deliver":{{"log":{{}}}},"filter":{filter}}}"#);
        let request = kit.http.put(kit.gateway.url("/v1/subscriptions/s")).header("content-type", "application/json");
        let response = request.body(body).send().await.expect("the gateway answers");
        assert!(response.status().is_success(), "{filter}: {}", response.text().await.expect("text"));
    }
}
