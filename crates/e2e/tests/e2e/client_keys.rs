//! The clients in `clients/` with a gateway that demands keys.

use std::process::Stdio;

use crate::{
    client_packages::ClientLanguage,
    clients::ClientSnippets,
    keyed_gateway::{KeyedGateway, create_key},
    kit::TestFolder,
};

async fn the_readme_does_what_it_says_with_a_key(language: ClientLanguage) {
    let Some(snippets) = ClientSnippets::of(language).await else { return };
    let folder = TestFolder::new();
    let key = create_key(&folder, &["--scopes", "jobs:write,jobs:read,work", "--queues", "mail"]).await;
    let keyed = KeyedGateway::start_in(folder, key.clone(), &[("GALLEY__MAINTENANCE__SWEEP_MS", "100")]).await;
    let command = |program: &str, key: &str| {
        let mut command = tokio::process::Command::from(snippets.command(program));
        command.env("GALLEY_URL", keyed.kit.gateway.url("")).env("GALLEY_KEY", key).kill_on_drop(true);
        command
    };
    let refused = command("enqueue", "").stderr(Stdio::piped()).output().await.expect("its language is installed");
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("401"), "{said}");
    let _worker = command("worker", &key).spawn().expect("its language is installed");
    let done = command("enqueue", &key).output().await.expect("its language is installed");
    let printed = String::from_utf8_lossy(&done.stdout).to_lowercase();
    assert!(done.status.success() && printed.starts_with("hello\n"), "{printed}");
}

#[tokio::test]
async fn python() {
    the_readme_does_what_it_says_with_a_key(ClientLanguage::Python).await;
}

#[tokio::test]
async fn typescript() {
    the_readme_does_what_it_says_with_a_key(ClientLanguage::TypeScript).await;
}
