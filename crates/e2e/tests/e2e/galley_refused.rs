//! `galley` with a wrong key, and with text that attacks terminals.

use serde_json::json;

use crate::{
    galley::{GalleyProgram, run_galley},
    keyed_gateway::KeyedGateway,
};

/// Clears a screen, sets a title, turns text around, ends a line, in seven and eight bits.
const HOSTILE: &str = "\u{1b}[2J\u{1b}]0;owned\u{7}\u{9b}31m\u{202e}\r\n\u{8}<script>饭👩‍🚀";

#[tokio::test]
async fn without_a_key_or_its_scope_the_message_says_what_to_do() {
    let keyed = KeyedGateway::start(&[]).await;
    let url = keyed.kit.gateway.url("");
    let (key, _) = keyed.make_key(&json!({ "name": "reader", "scopes": ["jobs:read"] })).await;
    let none = run_galley(&["queues", "list", "--url", &url], &[], "").await;
    assert!(none.code == 1 && none.err.contains("GALLEY_KEY"), "{}", none.err);
    let wrong = run_galley(&["queues", "list", "--url", &url], &[("GALLEY_KEY", "glk_wrong")], "").await;
    assert!(wrong.code == 1 && wrong.err.contains("invalid_key"), "{}", wrong.err);
    let scope = run_galley(&["queues", "list", "--url", &url], &[("GALLEY_KEY", &key)], "").await;
    assert!(scope.code == 1 && scope.err.contains("scope_required"), "{}", scope.err);
    assert!(![none.err, wrong.err, scope.err].concat().contains(&key), "no key is shown");
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_text_reaches_no_terminal_as_it_is() {
    let galley = GalleyProgram::start().await;
    let meta = json!({ "note": HOSTILE }).to_string();
    let args = json!([HOSTILE, "x".repeat(10_000)]).to_string();
    let job = galley.json(&["jobs", "enqueue", "a", &args, "--meta", &meta, "--tag", "t"]).await["job"].clone();
    let id = job["id"].as_str().expect("an id").to_owned();
    assert_eq!(job["args"][0], HOSTILE, "with --json it is the gateway's answer");
    let published = galley.kit.http.post(galley.kit.gateway.url("/v1/channels/news/messages"));
    published.header("content-type", "text/plain").body(HOSTILE).send().await.expect("an answer");
    let fetched = galley.kit.fetch("default").await.expect("a job");
    let error = json!({ "code": "x", "message": HOSTILE, "retryable": false });
    let body = json!({ "job_id": id, "worker_id": "puller", "token": fetched["token"], "error": error });
    assert_eq!(galley.kit.post("/ojs/v1/workers/nack", &body).await.status(), 200);
    let commands = [
        &["jobs", "get", &id][..],
        &["jobs", "wait", &id],
        &["events", "--after", "0-0-0"],
        &["subscribe", "news", "--since", "-PT1H", "--count", "1"],
        &["subscribe", "news", "--since", "-PT1H", "--count", "1", "--raw"],
    ];
    for command in commands {
        let run = galley.run(command).await;
        let text = run.out + &run.err;
        let hidden = text.chars().find(|c| (c.is_control() && *c != '\n') || *c == '\u{202e}');
        assert_eq!(hidden, None, "{command:?}: {text:?}");
        assert!(!text.lines().any(|line| line.starts_with('<')), "{command:?}: it cannot begin a line: {text:?}");
    }
    let unknown = galley.run(&["jobs", "get", HOSTILE]).await;
    assert!(unknown.code == 1 && !unknown.err.contains('\u{1b}'), "{:?}", unknown.err);
}
