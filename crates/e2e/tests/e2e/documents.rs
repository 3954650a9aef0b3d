//! The shell snippets of each document, pasted one after another into one shell.

use std::{fs, path::Path, process::Stdio, time::Duration};

use serde_json::Value;
use testkit::RedisServer;

use crate::{keyed::TOKEN_SECRET, kit::GalleyKit};

/// Where the documents say that Galley listens.
const DOCUMENTED_ADDRESS: &str = "127.0.0.1:8080";
/// The key of the reader, in `GALLEY_KEY`.
const KEY: &str = "glk_documents_0123456789012345678901234567890123456789012";

/// How long all snippets of a document may take: many programs one after another.
const SHELL_TIMEOUT: Duration = Duration::from_mins(2);

/// Prepares the shell. A request has to succeed. One that never ends (`-N` without a body) has to give a line. What a
/// test has no machine for (containers, whole builds) has to name things that exist.
const PRELUDE: &str = r#"
set -euo pipefail
curl() {
    local argument never_ends= stream line
    for argument in "$@"; do
        case $argument in
            --data*) never_ends= && break ;;
            -*N*) never_ends=yes ;;
        esac
    done
    if [ -n "$never_ends" ]; then
        exec {stream}< <(exec curl --fail --max-time 60 "$@")
        IFS= read -r line <&"$stream"
        kill "$!" || true
        exec {stream}<&-
        printf '%s\n' "$line"
        [ -n "$line" ]
    else
        command curl --fail-with-body --max-time 60 "$@"
    fi
}
make() { command make --dry-run "$@" >/dev/null; }
docker() {
    local argument
    for argument in "$@"; do
        case $argument in *=[0-9]*) argument=${argument%=*} ;; esac
        case $argument in
            queue-worker | pubsub-worker | gateway | setup | cli) grep -q "^  $argument:" docker-compose.yml ;;
            *.yml | */Dockerfile) [ -f "$argument" ] ;;
        esac
    done
    case "$*" in *'setup key') echo "$READER_KEY" ;; esac
}
kind() { :; }
kubectl() {
    local argument
    for argument in "$@"; do
        case $argument in
            k8s/*) [ -d "$argument" ] ;;
            service/* | deployment/*) grep -rqx "  name: ${argument#*/}" k8s ;;
        esac
    done
}
"#;

/// The `sh` blocks of a document, one after another. A block that starts with `#!` is a file, not a snippet.
fn script_of(document: &str) -> String {
    let mut script = String::new();
    let mut lines = document.lines();
    while lines.by_ref().any(|line| line.trim_start() == "```sh") {
        let block: Vec<&str> = lines.by_ref().take_while(|line| line.trim_start() != "```").collect();
        if !block.first().is_some_and(|line| line.starts_with("#!")) {
            script.push_str(&block.join("\n"));
            script.push('\n');
        }
    }
    script
}

async fn run_document(path: &str) -> GalleyKit {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let script = script_of(&fs::read_to_string(root.join(path)).expect(path));
    assert!(!script.is_empty(), "{path} has no shell snippets: take it off the list");
    let secrets = [("GALLEY__AUTH__FIRST_KEY", KEY), ("GALLEY__AUTH__TOKENS__SECRET", TOKEN_SECRET)];
    let kit = GalleyKit::start_with(RedisServer::start(), &secrets).await;
    let queues = [("GALLEY__QUEUE_WORKER__QUEUES", "default,demo")];
    let _worker = kit.start_worker(&queues).await;
    let _listener = kit.start_pubsub_worker().await;
    let script = script.replace(DOCUMENTED_ADDRESS, &kit.gateway.address().to_string());
    let mut shell = tokio::process::Command::new("bash");
    shell
        .arg("-c")
        .arg(format!("{PRELUDE}\nset -x\n{script}"))
        .current_dir(&root)
        .env("GALLEY_KEY", KEY)
        .env("READER_KEY", KEY)
        .env("GALLEY_URL", kit.gateway.url(""))
        .env("PATH", path_with_galley());
    shell.stdin(Stdio::null());
    let output = tokio::time::timeout(SHELL_TIMEOUT, shell.kill_on_drop(true).output()).await;
    let output = output.expect("it ends in time").expect("bash runs");
    assert!(
        output.status.success(),
        "{path}: {}\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    kit
}

/// The program `galley` is on the reader's path.
fn path_with_galley() -> String {
    let program = testkit::binary_path("galley");
    let folder = program.parent().expect("a program is in a folder").display();
    format!("{folder}:{}", std::env::var("PATH").unwrap_or_default())
}

/// One test for each document with shell snippets.
macro_rules! documents {
    ($($name:ident: $path:literal,)*) => {
        const DOCUMENTS: &[&str] = &[$($path),*];
        $(
            #[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                run_document($path).await;
            }
        )*
    };
}

documents! {
    the_snippets_of_the_readme_work: "README.md",
    the_snippets_of_the_quick_start_work: "docs/quick-start.md",
    the_snippets_of_the_recipes_work: "docs/recipes.md",
    the_snippets_about_jobs_work: "docs/jobs.md",
    the_snippets_about_cron_work: "docs/cron.md",
    the_snippets_about_subscriptions_work: "docs/subscriptions.md",
    the_snippets_about_workers_work: "docs/workers.md",
    the_snippets_about_observability_work: "docs/observability.md",
    the_snippets_about_operations_work: "docs/operations.md",
    the_snippets_about_the_admin_api_work: "docs/admin.md",
    the_snippets_about_the_command_line_work: "docs/cli.md",
    the_snippets_about_security_work: "docs/security.md",
}

const CHANNELS: &str = "docs/channels.md";

#[tokio::test(flavor = "multi_thread")]
async fn the_snippets_about_channels_publish_what_they_say() {
    let kit = run_document(CHANNELS).await;
    let history = kit.http.get(kit.gateway.url("/v1/channels/orders/messages"));
    let history = history.header("authorization", format!("Bearer {KEY}")).send().await.expect("an answer");
    let history: Value = history.json().await.expect("JSON");
    assert_eq!(history["items"].as_array().map(Vec::len), Some(6), "{history}");
}

#[tokio::test]
async fn every_filter_in_the_document_about_subscriptions_is_allowed() {
    let kit = GalleyKit::start().await;
    let document = include_str!("../../../../docs/subscriptions.md");
    let filters: Vec<&str> =
        document.split("\n```json\n").skip(1).filter_map(|rest| rest.split("\n```\n").next()).collect();
    assert!(filters.len() >= 2, "the document was read");
    for filter in filters {
        let body = format!(r#"{{"channels":["c"],"deliver":{{"log":{{}}}},"filter":{filter}}}"#);
        let request = kit.http.put(kit.gateway.url("/v1/subscriptions/s")).header("content-type", "application/json");
        let response = request.body(body).send().await.expect("the gateway answers");
        assert!(response.status().is_success(), "{filter}: {}", response.text().await.expect("text"));
    }
}

/// Documents whose snippets other tests and the benchmarks run.
const BUILD_DOCUMENTS: &[&str] = &[
    "CONTRIBUTING.md",
    "clients/python/README.md",
    "clients/typescript/README.md",
    "docs/performance.md",
    "examples/README.md",
    "examples/celery-port/README.md",
    "examples/express-reports/README.md",
    "examples/flask-shop/README.md",
    "examples/next-stories/README.md",
    "examples/rust-service/README.md",
    "docs/adr/README.md",
    "docs/commands.md",
    "docs/evidence.md",
    "docs/migrate.md",
    "docs/outbox.md",
    "docs/sdks.md",
];

#[test]
fn every_document_with_shell_snippets_is_run() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let listed = std::process::Command::new("git").args(["ls-files", "*.md"]).current_dir(&root).output();
    let listed = String::from_utf8(listed.expect("git runs").stdout).expect("text");
    assert!(listed.contains("README.md"));
    let known = |path: &&str| DOCUMENTS.contains(path) || BUILD_DOCUMENTS.contains(path) || *path == CHANNELS;
    for path in listed.lines().filter(|path| !known(path)) {
        let document = fs::read_to_string(root.join(path)).expect(path);
        assert!(script_of(&document).is_empty(), "{path} has shell snippets: put it on the list");
    }
}
