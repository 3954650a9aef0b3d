//! `galley publish`, `subscribe` and `subscriptions`.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::mpsc,
};

use serde_json::{Value, json};
use testkit::{RedisServer, ReservedPort, TEST_TIMEOUT, binary_path, eventually};

use crate::{galley::GalleyProgram, kit::GalleyKit};

/// A command that goes on, and the lines that it prints.
struct FollowingGalley {
    process: Child,
    lines: mpsc::Receiver<String>,
}

impl FollowingGalley {
    fn start(url: &str, args: &[&str]) -> Self {
        let mut command = Command::new(binary_path("galley"));
        command.args(args).env("GALLEY_URL", url).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut process = command.spawn().expect("galley starts");
        let output = process.stdout.take().expect("it is piped");
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        Self { process, lines }
    }

    fn line(&self) -> String {
        self.lines.recv_timeout(TEST_TIMEOUT).expect("a line")
    }
}

impl Drop for FollowingGalley {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscriber_goes_on_where_it_was_when_the_gateway_comes_back() {
    let port = ReservedPort::choose();
    let address = format!("127.0.0.1:{}", port.number());
    let listen = [("GALLEY__GATEWAY__LISTEN", address.as_str())];
    let mut galley = GalleyProgram { kit: GalleyKit::start_with(RedisServer::start(), &listen).await };
    let url = galley.kit.gateway.url("");
    galley.run(&["publish", "news", "before"]).await.done();
    let subscriber = FollowingGalley::start(&url, &["subscribe", "news", "--since", "-PT1H", "--json"]);
    let data = |line: String| serde_json::from_str::<Value>(&line).expect("JSON")["data"].clone();
    assert_eq!(data(subscriber.line()), "before");
    let again = testkit::ServiceProcess::start("gateway", &galley.kit.redis, &[]).await;
    let first = std::mem::replace(&mut galley.kit.gateway, again);
    first.kill();
    // Published through another gateway, while the subscriber has none
    galley.run(&["publish", "news", "{\"while\": \"away\"}"]).await.done();
    let _same_address = testkit::ServiceProcess::start("gateway", &galley.kit.redis, &listen).await;
    assert_eq!(data(subscriber.line()), json!({ "while": "away" }));
    galley.run(&["publish", "news", "after", "--attribute", "type=order.paid"]).await.done();
    let last: Value = serde_json::from_str(&subscriber.line()).expect("JSON");
    assert_eq!((&last["data"], &last["attributes"]["type"]), (&json!("after"), &json!("order.paid")));
}

#[tokio::test]
async fn a_gap_is_printed_and_a_count_ends_the_command() {
    let galley = GalleyProgram::start().await;
    let id = galley.run(&["publish", "news", "one"]).await.done();
    galley.run_with_input(&["publish", "news", "-"], "two").await.done();
    let run = galley.run(&["subscribe", "news", "--after", id.trim(), "--count", "1"]).await;
    assert!(run.code == 0 && run.out.trim_end().ends_with("two"), "{}{}", run.out, run.err);
    assert!(run.err.contains("continue with --after"), "{}", run.err);
    let run = galley.run(&["subscribe", "news", "--after", "1-1", "--count", "2", "--json"]).await;
    let lines: Vec<Value> = run.out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert!(lines[0]["gap"].is_object() && lines[1]["data"] == "one", "{lines:?}");
    let run = galley.run(&["subscribe", "news", "--after", "1-1", "--count", "1", "--raw"]).await;
    assert!(run.out == "one\n" && run.err.contains("missing"), "{}{}", run.out, run.err);
    let many = galley.run(&["subscribe", "news", "other.*", "--since", "-PT1H", "--count", "2", "--raw"]).await;
    assert_eq!(many.done(), "one\ntwo\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn subscriptions_are_created_steered_and_deleted() {
    let galley = GalleyProgram::start().await;
    let _worker = galley.kit.start_pubsub_worker().await;
    let create =
        ["subscriptions", "create", "orders", "--channel", "orders.*", "--to-queue", "mail", "--job-type", "order"];
    let created = galley.json(&create).await["subscription"].clone();
    assert_eq!((&created["channels"], &created["deliver"]["queue"]["type"]), (&json!(["orders.*"]), &json!("order")));
    galley.run(&["publish", "orders.new", "{\"id\":7}"]).await.done();
    eventually("the message is a job", || async {
        let queue = galley.run(&["queues", "show", "mail", "--json"]).await;
        (queue.code == 0 && queue.json()["queue"]["available"] == 1).then_some(())
    })
    .await;
    assert!(galley.run(&["subscriptions", "list"]).await.done().contains("queue mail"));
    assert_eq!(galley.json(&["subscriptions", "pause", "orders"]).await["subscription"]["state"], "paused");
    assert_eq!(galley.json(&["subscriptions", "resume", "orders"]).await["subscription"]["state"], "active");
    galley.run(&["subscriptions", "seek", "orders", "-PT1H"]).await.done();
    let without = galley.run(&["subscriptions", "delete", "orders"]).await;
    assert!(without.code == 2 && without.err.contains("orders"), "{}", without.err);
    galley.run(&["subscriptions", "delete", "orders", "--yes"]).await.done();
    assert_eq!(galley.run(&["subscriptions", "get", "orders"]).await.code, 1);
}
