//! The original demo's system, to the letter.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
};
use testkit::redis;

use serde_json::Value;
use testkit::redis::AsyncCommands;
use testkit::{MessageDropProxy, ServiceProcess, eventually};

use crate::{
    http_client::{self, CheckedClient},
    kit::GalleyKit,
};

const LIST: &str = "task:prodcons:queue";
const CHANNEL: &str = "task:pubsub:channel";

#[tokio::test]
async fn the_page_has_the_two_links_and_both_redirect_to_it() {
    let kit = GalleyKit::start().await;
    let page = kit.get("/").await;
    assert_eq!(page.headers()["content-type"], "text/html; charset=utf-8");
    let page = page.text().await.expect("text");
    assert!(
        page.contains(r#"<a href="/prodcons">生产消费者模式</a>"#)
            && page.contains(r#"<a href="/pubsub">发布订阅者模式</a>"#)
    );
    assert!(!page.contains("<script"));
    let client = CheckedClient::from(reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()));
    for path in ["/prodcons", "/pubsub"] {
        let response = client.get(kit.gateway.url(path)).send().await.expect("an answer");
        assert_eq!(
            (response.status().as_u16(), &response.headers()["location"]),
            (302, &"/".parse().expect("a header"))
        );
    }
}

#[tokio::test]
async fn the_raw_element_is_on_the_raw_list() {
    let kit = GalleyKit::start().await;
    kit.get("/prodcons").await;
    let elements: Vec<String> = kit.redis.connection().await.lrange(LIST, 0, -1).await.expect("redis runs");
    assert!(matches!(elements.as_slice(), [digit] if digit.parse::<u8>().is_ok_and(|n| n < 10)), "{elements:?}");
}

/// Requests a path 50 times, 10 at a time, as `siege -c10 -r5` does, and counts the good answers.
async fn siege(kit: &GalleyKit, path: &str) -> usize {
    let url = kit.gateway.url(path);
    let visitors = (0..10).map(|_| {
        let (client, url) = (kit.http.clone(), url.clone());
        tokio::spawn(async move {
            let mut good = 0;
            for _ in 0..5 {
                good += usize::from(client.get(&url).send().await.is_ok_and(|response| response.status() == 200));
            }
            good
        })
    });
    let mut good = 0;
    for visitor in visitors.collect::<Vec<_>>() {
        good += visitor.await.expect("no panic");
    }
    good
}

#[tokio::test]
async fn fifty_visits_are_fifty_elements_executed_once_each() {
    let kit = GalleyKit::start().await;
    let workers = [kit.start_worker(&[]).await, kit.start_worker(&[]).await];
    assert_eq!(siege(&kit, "/prodcons").await, 50);
    let executed = || workers.iter().map(|worker| worker.tasks().len()).sum::<usize>();
    eventually("50 elements are executed", || async { (executed() >= 50).then_some(()) }).await;
    eventually("50 jobs are completed", || async {
        let stats: serde_json::Value = kit.get("/ojs/v1/queues/prodcons/stats").await.json().await.ok()?;
        (stats["queue"]["completed"] == 50).then_some(())
    })
    .await;
    let stats: serde_json::Value = kit.get("/ojs/v1/queues/prodcons/stats").await.json().await.expect("JSON");
    assert_eq!((&stats["queue"]["available"], &stats["queue"]["active"]), (&0.into(), &0.into()));
    // Every log line names its job: 50 executions, 50 jobs
    let mut executions: BTreeMap<String, usize> = BTreeMap::new();
    for line in workers.iter().flat_map(ServiceProcess::log_entries) {
        if line["message"].as_str().is_some_and(|message| message.starts_with("Task get ")) {
            *executions.entry(line["id"].as_str().expect("an id").to_owned()).or_default() += 1;
        }
    }
    assert_eq!((executions.len(), executions.values().sum::<usize>()), (50, 50));
}

#[tokio::test]
async fn fifty_visits_are_fifty_messages_at_each_subscriber() {
    let kit = GalleyKit::start().await;
    let listeners = [kit.start_pubsub_worker().await, kit.start_pubsub_worker().await];
    assert_eq!(siege(&kit, "/pubsub").await, 50);
    for listener in &listeners {
        eventually("50 messages are heard", || async { (listener.tasks().len() >= 50).then_some(()) }).await;
        assert_eq!(listener.tasks().len(), 50);
    }
    assert_eq!(listeners[0].tasks(), listeners[1].tasks(), "the same messages in the same order");
}

#[tokio::test]
async fn a_message_reaches_plain_subscribers_byte_for_byte_and_plain_publishers_are_heard() {
    let kit = GalleyKit::start().await;
    let listener = kit.start_pubsub_worker().await;
    let client = redis::Client::open(kit.redis.url()).expect("a URL");
    let mut subscriber = client.get_async_pubsub().await.expect("redis runs");
    subscriber.subscribe(CHANNEL).await.expect("redis runs");
    let body = b"\x00\xff \r\n{\"a\":1}".to_vec();
    let url = kit.gateway.url(&format!("/v1/channels/{CHANNEL}/messages"));
    let response = kit.http.post(url).body(body.clone()).send().await.expect("an answer");
    assert_eq!(response.status(), 201);
    let heard = futures_util::StreamExt::next(&mut subscriber.on_message()).await.expect("a message");
    assert_eq!(heard.get_payload_bytes(), body);
    kit.redis_command(&["PUBLISH", CHANNEL, "from outside"]).await;
    listener.wait_for_task("from outside").await;
    listener.wait_for_task("\\u{0}\u{fffd} \\r\\n{\"a\":1}").await;
}

/// A Python program with redis-py, or none where that is missing.
pub(crate) fn python(program: &str, url: &str) -> Option<PythonProcess> {
    let python = std::env::var("GALLEY_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let has_redis = Command::new(&python).args(["-c", "import redis"]).stderr(Stdio::null()).status();
    if !has_redis.is_ok_and(|status| status.success()) {
        testkit::skip(&format!("{python} has no redis package; `make test` installs it"));
        return None;
    }
    let mut process =
        Command::new(python).args(["-u", "-c", program, url]).stdout(Stdio::piped()).spawn().expect("python starts");
    let lines: Arc<Mutex<Vec<String>>> = Arc::default();
    let (kept, output) = (lines.clone(), process.stdout.take().expect("piped"));
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            kept.lock().expect("no panic").push(line);
        }
    });
    Some(PythonProcess { process, lines })
}

pub(crate) struct PythonProcess {
    process: Child,
    lines: Arc<Mutex<Vec<String>>>,
}

impl PythonProcess {
    pub(crate) fn lines(&self) -> Vec<String> {
        self.lines.lock().expect("no panic").clone()
    }

    /// The tasks that it has printed so far as `Task get <task>`.
    pub(crate) fn tasks(&self) -> Vec<String> {
        self.lines().iter().filter_map(|line| Some(line.strip_prefix("Task get ")?.to_owned())).collect()
    }
}

impl Drop for PythonProcess {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

const POPPER: &str = "
import sys, redis
rcon = redis.StrictRedis.from_url(sys.argv[1])
print('ready')
while True:
    print('Task get', rcon.blpop('task:prodcons:queue', 0)[1].decode())
";
const PUSHER: &str = "
import sys, redis
rcon = redis.StrictRedis.from_url(sys.argv[1])
for n in range(40):
    rcon.lpush('task:prodcons:queue', 'python-%d' % n)
print('pushed')
";
const SUBSCRIBER: &str = "
import sys, redis
ps = redis.StrictRedis.from_url(sys.argv[1]).pubsub()
ps.subscribe('task:pubsub:channel')
for i in ps.listen():
    if i['type'] == 'subscribe':
        print('ready')
    if i['type'] == 'message':
        print('Task get', i['data'].decode())
";
const PUBLISHER: &str = "
import sys, redis
rcon = redis.StrictRedis.from_url(sys.argv[1])
for n in range(20):
    rcon.publish('task:pubsub:channel', 'python-%d' % n)
print('published')
";

#[tokio::test]
async fn plain_redis_py_clients_push_and_pop_beside_the_worker() {
    let kit = GalleyKit::start().await;
    let worker = kit.start_worker(&[]).await;
    let Some(popper) = python(POPPER, &kit.redis.url()) else { return };
    eventually("the popper is ready", || async { popper.lines().contains(&"ready".to_owned()).then_some(()) }).await;
    let _pusher = python(PUSHER, &kit.redis.url());
    let got = || -> Vec<String> {
        let mut tasks: Vec<String> = popper.tasks().into_iter().chain(worker.tasks()).collect();
        tasks.sort();
        tasks
    };
    eventually("all 40 elements are taken", || async { (got().len() >= 40).then_some(()) }).await;
    let mut expected: Vec<String> = (0..40).map(|n| format!("python-{n}")).collect();
    expected.sort();
    assert_eq!(got(), expected, "each element went to exactly one of the two");
}

#[tokio::test]
async fn a_worker_that_hears_nothing_says_so_and_subscribes_anew() {
    let kit = GalleyKit::start().await;
    let way = MessageDropProxy::start(&kit.redis).await;
    let quick = [("GALLEY__CHANNELS__PROBE_MS", "100"), ("GALLEY__REDIS__RESPONSE_TIMEOUT_MS", "2000")];
    let listener = ServiceProcess::start_with_redis_url("pubsub-worker", &way.url(), &quick).await;
    listener.wait_until_ready().await;
    way.drop_messages();
    eventually("it is not ready", || async {
        let response = http_client::get(listener.url("/health/ready")).await.ok()?;
        let reason: Value = response.json().await.ok()?;
        reason["reason"].as_str()?.contains("was not heard within 2000 ms").then_some(())
    })
    .await;
    way.deliver_on_new_connections();
    listener.wait_for_event("channel.resubscribed").await;
    listener.wait_until_ready().await;
    // Published again and again: a message in the middle of another new subscription would be missing
    eventually("it receives a message", || async {
        kit.get("/pubsub").await;
        (!listener.tasks().is_empty()).then_some(())
    })
    .await;
}

#[tokio::test]
async fn plain_redis_py_clients_publish_and_subscribe_beside_the_worker() {
    let kit = GalleyKit::start().await;
    let listener = kit.start_pubsub_worker().await;
    let Some(subscriber) = python(SUBSCRIBER, &kit.redis.url()) else { return };
    eventually("the subscriber is ready", || async { subscriber.lines().contains(&"ready".to_owned()).then_some(()) })
        .await;
    let _publisher = python(PUBLISHER, &kit.redis.url());
    for _ in 0..5 {
        kit.get("/pubsub").await;
    }
    eventually("25 messages are heard by both", || async {
        (subscriber.tasks().len() >= 25 && listener.tasks().len() >= 25).then_some(())
    })
    .await;
    assert_eq!(subscriber.tasks(), listener.tasks(), "both receive the same, in the same order");
}
