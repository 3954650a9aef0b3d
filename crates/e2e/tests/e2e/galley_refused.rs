//! `galley` with a wrong key, and with text that attacks terminals.

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

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

/// A server that does that with each connection.
async fn odd_server(answer: Option<&'static str>) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    tokio::spawn(async move {
        let mut silent = Vec::new();
        while let Ok((mut connection, _)) = listener.accept().await {
            match answer {
                Some(answer) => {
                    let _ = connection.read(&mut [0; 1024]).await;
                    let _ = connection.write_all(answer.as_bytes()).await;
                }
                // It takes the connection and says nothing
                None => silent.push(connection),
            }
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_is_not_fooled_by_servers_that_are_none_and_does_not_wait_for_ever() {
    let page = "HTTP/1.1 200 OK\r\ncontent-length: 13\r\nconnection: close\r\n\r\n{\"a\":\"\u{1b}[31m\"}";
    let servers =
        [("is no gateway of Galley", Some(page)), ("no gateway", Some("+OK\r\n+OK\r\n")), ("does not answer", None)];
    for (wanted, answer) in servers {
        let address = odd_server(answer).await;
        let (redis, url) = (format!("redis://{address}/5"), format!("http://{address}"));
        let run = run_galley(&["doctor", "--redis-url", &redis, "--url", &url], &[], "").await;
        assert_eq!(run.code, 1, "{}", run.out);
        assert!(run.out.contains(wanted) && !run.out.contains("the gateway takes it"), "{}", run.out);
        assert!(run.err.contains("2 things are wrong") && !run.out.contains('\u{1b}'), "{}{}", run.out, run.err);
    }
}
