//! A gateway that demands keys, for tests of what keys may do.

use reqwest::{Method, Response};
use serde_json::{Value, json};
use testkit::{RedisServer, ServiceProcess};

use crate::{
    http_client::CheckedClient,
    kit::{GalleyKit, TestFolder},
};

/// Every scope, as the command line takes them.
pub(crate) const EVERY_SCOPE: &str =
    "jobs:write,jobs:read,work,channels:publish,channels:subscribe,subscriptions,admin:read,admin:write";

/// A gateway that demands keys, and the file with its keys.
pub(crate) struct KeyedGateway {
    pub(crate) kit: GalleyKit,
    pub(crate) folder: TestFolder,
    /// A key that may do everything.
    pub(crate) admin: String,
}

impl KeyedGateway {
    pub(crate) async fn start(variables: &[(&str, &str)]) -> Self {
        let folder = TestFolder::new();
        let admin = create_key(&folder, &["--scopes", EVERY_SCOPE]).await;
        Self::start_in(folder, admin, variables).await
    }

    pub(crate) async fn start_in(folder: TestFolder, admin: String, variables: &[(&str, &str)]) -> Self {
        let file = folder.path_text("keys.toml");
        let all: Vec<(&str, &str)> =
            variables.iter().copied().chain([("GALLEY__AUTH__KEYS_FILE", file.as_str())]).collect();
        let kit = GalleyKit::start_with(RedisServer::start(), &all).await;
        Self { kit, folder, admin }
    }

    pub(crate) async fn send(&self, key: &str, method: Method, path: &str, body: Option<&Value>) -> Response {
        send_to(&self.kit.gateway, key, method, path, body).await
    }

    /// The status and the code of an error.
    pub(crate) async fn outcome(&self, key: &str, method: Method, path: &str, body: Option<&Value>) -> (u16, String) {
        outcome(self.send(key, method, path, body).await).await
    }

    /// Makes a key in Redis and gives it with its id.
    pub(crate) async fn make_key(&self, body: &Value) -> (String, String) {
        let response = self.send(&self.admin, Method::POST, "/v1/admin/keys", Some(body)).await;
        assert_eq!(response.status(), 201);
        let made: Value = response.json().await.expect("JSON");
        let text = |value: &Value| value.as_str().expect("text").to_owned();
        (text(&made["key"]), text(&made["api_key"]["id"]))
    }

    pub(crate) async fn enqueue(&self, queue: &str) -> String {
        let body = json!({ "type": "test.echo", "args": [], "options": { "queue": queue } });
        let response = self.send(&self.admin, Method::POST, "/ojs/v1/jobs", Some(&body)).await;
        assert_eq!(response.status(), 201);
        let made: Value = response.json().await.expect("JSON");
        made["job"]["id"].as_str().expect("an id").to_owned()
    }
}

pub(crate) async fn send_to(
    gateway: &ServiceProcess,
    key: &str,
    method: Method,
    path: &str,
    body: Option<&Value>,
) -> Response {
    let mut request = CheckedClient::new().request(method, gateway.url(path));
    if !key.is_empty() {
        request = request.header("authorization", format!("Bearer {key}"));
    }
    if let Some(body) = body {
        request = request.header("content-type", "application/json").body(body.to_string());
    }
    request.send().await.expect("an answer")
}

pub(crate) async fn outcome(response: Response) -> (u16, String) {
    let status = response.status().as_u16();
    if status < 400 {
        return (status, String::new());
    }
    let answer: Value = response.json().await.unwrap_or_default();
    let code = answer["error"]["code"].as_str().or(answer["code"].as_str()).unwrap_or_default();
    (status, code.to_owned())
}

/// Makes a key with the command line, without any service.
pub(crate) async fn create_key(folder: &TestFolder, options: &[&str]) -> String {
    let mut command = tokio::process::Command::new(testkit::binary_path("gateway"));
    command.args(["keys", "create", "--name", "a key", "--file", &folder.path_text("keys.toml")]).args(options);
    let output = command.output().await.expect("a binary of ours starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let printed = String::from_utf8(output.stdout).expect("text");
    assert_eq!(printed.lines().count(), 1, "the key alone: {printed}");
    printed.trim().to_owned()
}
