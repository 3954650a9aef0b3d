//! A gateway that demands keys, and the keys of a test.

use model::access::ApiKey;
use reqwest::{Method, Response};
use serde_json::Value;
use testkit::RedisServer;

use crate::kit::{GalleyKit, TestFolder};

/// What signs the tokens that gateways make, in tests.
pub(crate) const TOKEN_SECRET: &str = "tokens-of-tests-are-signed-with-this";

/// Everything that a key may do.
const ALL_SCOPES: &str = r#"scopes = ["jobs:write", "jobs:read", "work", "channels:publish", "channels:subscribe",
    "subscriptions", "admin:read", "admin:write"]"#;

/// A gateway that demands keys.
pub(crate) struct KeyedKit {
    pub(crate) kit: GalleyKit,
    /// A key that may do everything.
    pub(crate) admin: String,
    folder: TestFolder,
    keys: Vec<(String, String)>,
}

/// The keys of a gateway, before it starts.
pub(crate) struct KeyRing {
    folder: TestFolder,
    keys: Vec<(String, String)>,
}

impl KeyRing {
    pub(crate) fn new() -> Self {
        Self { folder: TestFolder::new(), keys: Vec::new() }
    }

    /// Adds a key. `members` are lines of TOML, such as `scopes = ["work"]`.
    pub(crate) fn add(&mut self, members: &str) -> String {
        let key = ApiKey::generate();
        let name = format!("key {}", self.keys.len());
        let table =
            format!("[[keys]]\nid = \"{}\"\nname = \"{name}\"\nhash = \"{}\"\n{members}\n", key.id(), key.hash());
        self.keys.push((key.expose().to_owned(), table));
        key.expose().to_owned()
    }

    /// Adds a key that may do everything in a namespace.
    pub(crate) fn add_namespace(&mut self, namespace: &str) -> String {
        self.add(&format!("{ALL_SCOPES}\nnamespace = \"{namespace}\""))
    }

    fn write(&self) {
        let text: String = self.keys.iter().map(|(_, table)| table.as_str()).collect();
        // As a whole, so that nobody reads half of it
        self.folder.write("keys.new", &text);
        std::fs::rename(self.folder.path("keys.new"), self.folder.path("keys.toml")).expect("renamed");
    }

    pub(crate) async fn start(mut self, variables: &[(&str, &str)]) -> KeyedKit {
        let admin = self.add(ALL_SCOPES);
        self.write();
        let file = self.folder.path_text("keys.toml");
        let mut all = vec![("GALLEY__AUTH__KEYS_FILE", file.as_str()), ("GALLEY__AUTH__TOKENS__SECRET", TOKEN_SECRET)];
        all.extend_from_slice(variables);
        let kit = GalleyKit::start_with(RedisServer::start(), &all).await;
        KeyedKit { kit, admin, folder: self.folder, keys: self.keys }
    }
}

impl KeyedKit {
    pub(crate) async fn start(variables: &[(&str, &str)]) -> Self {
        KeyRing::new().start(variables).await
    }

    /// The path of the file of keys.
    pub(crate) fn keys_file(&self) -> String {
        self.folder.path_text("keys.toml")
    }

    /// Takes a key out of the file.
    pub(crate) fn revoke(&mut self, key: &str) {
        self.keys.retain(|(known, _)| known != key);
        let ring = KeyRing { folder: std::mem::replace(&mut self.folder, TestFolder::new()), keys: self.keys.clone() };
        ring.write();
        self.folder = ring.folder;
    }

    /// Sends a request with a credential, and a body of JSON unless it is null.
    pub(crate) async fn send(&self, key: &str, method: Method, path: &str, body: &Value) -> Response {
        let request = self.kit.http.request(method, self.kit.gateway.url(path));
        let request = request.header("authorization", format!("Bearer {key}"));
        let request = match body {
            Value::Null => request,
            body => request.header("content-type", "application/json").body(body.to_string()),
        };
        request.send().await.expect("the gateway answers")
    }

    pub(crate) async fn get(&self, key: &str, path: &str) -> Response {
        self.send(key, Method::GET, path, &Value::Null).await
    }

    pub(crate) async fn post(&self, key: &str, path: &str, body: &Value) -> Response {
        self.send(key, Method::POST, path, body).await
    }
}

/// The status and the code of an answer, in either shape; no code if it is no error.
pub(crate) async fn outcome(response: Response) -> (u16, String) {
    let status = response.status().as_u16();
    let answer: Value = response.json().await.unwrap_or_default();
    let code = answer["error"]["code"].as_str().or(answer["code"].as_str()).unwrap_or_default().to_owned();
    (status, code)
}
