//! Events as they happen: order, resuming, gaps, and what becomes of the streams when something breaks.

use std::collections::BTreeSet;
use testkit::redis;

use nix::sys::signal::Signal;
use reqwest::Response;
use serde_json::{Value, json};
use testkit::{RedisServer, ServiceProcess, TEST_TIMEOUT, eventually};

use crate::{
    kit::{GalleyKit, job_body},
    sse,
};

pub(crate) const STREAM: &str = "/ojs/v1/events/stream";

/// A client of an event stream.
pub(crate) struct JobEventsClient {
    response: Response,
    text: String,
}

#[derive(Debug)]
pub(crate) struct ReceivedJobEvent {
    pub(crate) id: String,
    pub(crate) event: String,
    pub(crate) data: Value,
}

impl JobEventsClient {
    pub(crate) async fn open(url: String, last: Option<&str>) -> Self {
        let response = sse::connect(url, last).await;
        Self { response, text: String::new() }
    }

    /// The next block of lines as it came; none at the end.
    async fn block(&mut self) -> Option<String> {
        loop {
            if let Some((block, rest)) = self.text.split_once("\n\n") {
                let (block, rest) = (block.to_owned(), rest.to_owned());
                self.text = rest;
                return Some(block);
            }
            let chunk =
                tokio::time::timeout(TEST_TIMEOUT, self.response.chunk()).await.expect("something comes in time");
            self.text += std::str::from_utf8(&chunk.expect("no broken connection")?).expect("text");
        }
    }

    /// Waits for a keep-alive, behind which no event ends.
    async fn keep_alive(&mut self) {
        while !self.text.contains(sse::KEEP_ALIVE) {
            let chunk = tokio::time::timeout(TEST_TIMEOUT, self.response.chunk()).await.expect("in time");
            self.text += std::str::from_utf8(&chunk.expect("no broken connection").expect("it goes on")).expect("text");
        }
        // Several may have come, and the beginning of one
        assert!(sse::KEEP_ALIVE.starts_with(&self.text.replace(sse::KEEP_ALIVE, "")), "{:?}", self.text);
    }

    /// The next event after the beginning; none at the end.
    pub(crate) async fn next(&mut self) -> Option<ReceivedJobEvent> {
        loop {
            let block = self.block().await?;
            let field = |name: &str| {
                let mut lines = block.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
                lines.next().unwrap_or_default().to_owned()
            };
            if !field("data").is_empty() && field("event") != "begin" {
                let data = serde_json::from_str(&field("data")).expect("JSON");
                return Some(ReceivedJobEvent { id: field("id"), event: field("event"), data });
            }
        }
    }

    pub(crate) async fn expect(&mut self, event: &str) -> ReceivedJobEvent {
        let message = self.next().await.expect("the stream goes on");
        assert_eq!(message.event, event, "{message:?}");
        message
    }

    pub(crate) async fn rest(&mut self) -> Vec<ReceivedJobEvent> {
        let mut all = Vec::new();
        while let Some(message) = self.next().await {
            all.push(message);
        }
        all
    }
}

fn noop(queue: &str) -> Value {
    json!({ "type": "test.noop", "args": [], "queue": queue })
}

#[tokio::test]
async fn events_come_in_their_order_and_only_those_that_were_asked_for() {
    let kit = GalleyKit::start().await;
    let mut all = JobEventsClient::open(kit.gateway.url("/ojs/v1/events"), None).await;
    let mut some =
        JobEventsClient::open(kit.gateway.url(&format!("{STREAM}?types=job.enqueued&queues=a,b")), None).await;
    let mut of_queue = JobEventsClient::open(kit.gateway.url("/ojs/v1/queues/a/events"), None).await;
    let mut ids = Vec::new();
    for queue in ["a", "c", "b", "a"] {
        ids.push(kit.enqueue(&noop(queue)).await);
    }
    let mut positions = Vec::new();
    for id in &ids {
        let message = all.expect("job.enqueued").await;
        assert_eq!((&message.data["data"]["job_id"], &message.data["subject"]), (&json!(id), &json!(id)));
        assert_eq!(message.data["type"], "job.enqueued");
        assert_eq!(message.data["id"], json!(message.id), "an event in the list can be gone on from too");
        positions.push(message.id);
    }
    assert_eq!(positions.iter().collect::<BTreeSet<_>>().len(), 4, "{positions:?}");
    for index in [0, 2, 3] {
        assert_eq!(some.expect("job.enqueued").await.data["data"]["job_id"], json!(ids[index]));
    }
    let _worker = kit.start_worker(&[("GALLEY__QUEUE_WORKER__QUEUES", "a")]).await;
    let mut kinds = Vec::new();
    for _ in 0..4 {
        kinds.push(of_queue.next().await.expect("the stream goes on").event);
    }
    assert_eq!(kinds, ["job.enqueued", "job.enqueued", "job.completed", "job.completed"]);
}

#[tokio::test]
async fn a_client_that_comes_back_gets_exactly_what_it_missed_from_any_gateway() {
    let kit = GalleyKit::start().await;
    let other = ServiceProcess::start("gateway", &kit.redis, &[]).await;
    other.wait_until_ready().await;
    let mut stream = JobEventsClient::open(kit.gateway.url(STREAM), None).await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(kit.enqueue(&job_body("a", &json!([]))).await);
    }
    let seen = stream.expect("job.enqueued").await.id;
    drop(stream);
    for _ in 0..20 {
        ids.push(kit.enqueue(&job_body("a", &json!([]))).await);
    }
    let by_query = format!("{STREAM}?after={seen}");
    let mut streams = [
        JobEventsClient::open(kit.gateway.url(STREAM), Some(&seen)).await,
        JobEventsClient::open(other.url(STREAM), Some(&seen)).await,
        JobEventsClient::open(other.url(&by_query), None).await,
    ];
    ids.push(kit.enqueue(&job_body("a", &json!([]))).await);
    for stream in &mut streams {
        let mut heard = Vec::new();
        while heard.len() < ids.len() - 1 {
            let message = stream.expect("job.enqueued").await;
            heard.push(message.data["data"]["job_id"].as_str().expect("an id").to_owned());
        }
        assert_eq!(heard, ids[1..], "nothing is missing, nothing comes twice");
    }
}

#[tokio::test]
async fn a_position_that_is_no_longer_kept_is_told_as_a_gap() {
    let kit = GalleyKit::start().await;
    let mut stream = JobEventsClient::open(kit.gateway.url(STREAM), None).await;
    kit.enqueue(&job_body("a", &json!([]))).await;
    let seen = stream.expect("job.enqueued").await.id;
    for cut in [&["XTRIM", "galley:events", "MAXLEN", "0"][..], &["FLUSHALL"]] {
        kit.redis_command(cut).await;
        let id = kit.enqueue(&job_body("a", &json!([]))).await;
        let mut back = JobEventsClient::open(kit.gateway.url(STREAM), Some(&seen)).await;
        assert_eq!(back.expect("gap").await.data["after"], json!(seen));
        assert_eq!(back.expect("job.enqueued").await.data["data"]["job_id"], json!(id), "and then it goes on");
        // Who was there all the time is told too that what it saw last is gone
        assert!(stream.expect("gap").await.id.is_empty());
        assert_eq!(stream.expect("job.enqueued").await.data["data"]["job_id"], json!(id));
    }
    let mut everything = JobEventsClient::open(kit.gateway.url(&format!("{STREAM}?after=0-0-0")), None).await;
    everything.expect("job.enqueued").await;
}

#[tokio::test]
async fn two_hundred_readers_cost_one_connection_to_redis() {
    let kit = GalleyKit::start().await;
    let connections = async || {
        let list = redis::cmd("CLIENT").arg("LIST").query_async(&mut kit.redis.connection().await).await;
        let list: String = list.expect("redis runs");
        list.lines().map(ToOwned::to_owned).collect::<Vec<_>>()
    };
    let following = |list: &[String]| list.iter().filter(|line| line.contains("cmd=xread ")).count();
    let first = JobEventsClient::open(kit.gateway.url(STREAM), None).await;
    eventually("it is followed", || async { (following(&connections().await) == 1).then_some(()) }).await;
    let before = connections().await.len();
    let mut streams = vec![first];
    for _ in 1..200 {
        streams.push(JobEventsClient::open(kit.gateway.url(STREAM), None).await);
    }
    let after = connections().await;
    assert_eq!(following(&after), 1, "{after:#?}");
    // Threads and the health check open theirs when they first need them
    assert!(after.len() < before + 20, "{before}, then {after:#?}");
    kit.enqueue(&job_body("a", &json!([]))).await;
    for stream in &mut streams {
        stream.expect("job.enqueued").await;
    }
    let metrics = kit.get("/metrics").await.text().await.expect("text");
    assert!(metrics.contains("galley_event_streams 200"), "{metrics}");
}

#[tokio::test]
async fn nobody_follows_the_events_when_nobody_reads_them() {
    let quick = [("GALLEY__GATEWAY__EVENT_KEEP_ALIVE_MS", "100")];
    let kit = GalleyKit::start_with(RedisServer::start(), &quick).await;
    let mut stream = JobEventsClient::open(kit.gateway.url(STREAM), None).await;
    let beginning = "retry: 3000\nid: 0-0-0\nevent: begin\ndata: {\"after\":\"0-0-0\"}";
    assert_eq!(stream.block().await.as_deref(), Some(beginning));
    stream.keep_alive().await;
    drop(stream);
    eventually("the connection is gone", || async {
        let list: String =
            redis::cmd("CLIENT").arg("LIST").query_async(&mut kit.redis.connection().await).await.ok()?;
        (!list.contains("cmd=xread ")).then_some(())
    })
    .await;
    // And it is there again for the next
    let mut stream = JobEventsClient::open(kit.gateway.url(STREAM), None).await;
    kit.enqueue(&job_body("a", &json!([]))).await;
    stream.expect("job.enqueued").await;
}

#[tokio::test]
async fn a_stream_goes_on_after_redis_was_killed_and_started_again() {
    for redis in [RedisServer::start_with(testkit::RedisPersistence::Always), RedisServer::start()] {
        let mut kit = GalleyKit::start_with(redis, &[]).await;
        let mut stream = JobEventsClient::open(kit.gateway.url(STREAM), None).await;
        kit.enqueue(&job_body("a", &json!([]))).await;
        stream.expect("job.enqueued").await;
        kit.redis.kill();
        assert_eq!(kit.post("/ojs/v1/jobs", &job_body("a", &json!([]))).await.status(), 503);
        kit.redis.restart();
        let id = eventually("a job is taken again", || async {
            let response = kit.post("/ojs/v1/jobs", &job_body("a", &json!([]))).await;
            let answer: Value = response.json().await.ok()?;
            answer["job"]["id"].as_str().map(ToOwned::to_owned)
        })
        .await;
        loop {
            let message = stream.next().await.expect("the stream goes on");
            if message.data["data"]["job_id"] == json!(id) {
                break;
            }
            // A job whose request was not answered in time may have been stored
            assert!(["gap", "job.enqueued"].contains(&message.event.as_str()), "{message:?}");
        }
    }
}

#[tokio::test]
async fn streams_do_not_delay_a_gateway_that_is_told_to_stop() {
    let mut kit =
        GalleyKit::start_with(RedisServer::start(), &[("GALLEY__GATEWAY__SHUTDOWN_GRACE_MS", "600000")]).await;
    let id = kit.enqueue(&job_body("a", &json!([]))).await;
    let mut streams = Vec::new();
    for path in [STREAM, "/ojs/v1/queues/default/events", &format!("/ojs/v1/jobs/{id}/events")] {
        streams.push(JobEventsClient::open(kit.gateway.url(path), None).await);
    }
    kit.gateway.signal(Signal::SIGTERM);
    for stream in &mut streams {
        let last = stream.rest().await.pop().expect("a last message");
        assert_eq!((last.event.as_str(), &last.data["reason"]), ("server.shutdown", &json!("shutdown")));
    }
    assert!(kit.gateway.wait_for_exit().await.success());
}

#[tokio::test]
async fn the_stream_of_a_job_tells_everything_of_it_and_ends_with_it() {
    let kit = GalleyKit::start().await;
    let retry = json!({ "initial_interval": "PT0.1S", "jitter": false });
    let id = kit.enqueue(&json!({ "type": "test.fail_once", "args": [], "retry": retry })).await;
    kit.enqueue(&job_body("test.noop", &json!([]))).await;
    let path = format!("/ojs/v1/jobs/{id}/events");
    let mut stream = JobEventsClient::open(kit.gateway.url(&path), None).await;
    // Each process writes its events a moment after they happened
    let mut live = vec![stream.expect("job.enqueued").await];
    let _worker = kit.start_worker(&[("GALLEY__JOBS__STARTED_EVENTS", "true")]).await;
    live.extend(stream.rest().await);
    let kinds: Vec<_> = live.iter().map(|message| message.event.as_str()).collect();
    assert_eq!(kinds, ["job.enqueued", "job.started", "job.failed", "job.started", "job.completed"]);
    assert!(live.iter().all(|message| message.data["data"]["job_id"] == json!(id)));
    assert_eq!(live[3].data["data"]["attempt"], 2);

    // It is over: the same from what is kept, and then the end
    let known = JobEventsClient::open(kit.gateway.url(&path), None).await.rest().await;
    assert_eq!(
        known.iter().map(|message| &message.id).collect::<Vec<_>>(),
        live.iter().map(|m| &m.id).collect::<Vec<_>>()
    );
    let since = JobEventsClient::open(kit.gateway.url(&path), Some(&live[3].id)).await.rest().await;
    assert_eq!(since.iter().map(|message| message.event.as_str()).collect::<Vec<_>>(), ["job.completed"]);
    let again = kit.http.get(kit.gateway.url(&path)).header("last-event-id", &live[4].id).send().await;
    assert_eq!(again.expect("an answer").status(), 204, "a browser that heard the end need not come back");
    let list = kit.http.get(kit.gateway.url(&path)).header("accept", "application/json").send().await;
    let list: Value = list.expect("an answer").json().await.expect("JSON");
    assert_eq!(list["events"].as_array().map(Vec::len), Some(5));

    // The events may be gone while the job is still known
    kit.redis_command(&["DEL", "galley:events"]).await;
    let mut late = JobEventsClient::open(kit.gateway.url(&path), None).await.rest().await;
    let last = late.pop().expect("how it ended");
    assert_eq!((last.event.as_str(), &last.data["data"]["attempt"], late.len()), ("job.completed", &json!(2), 0));
    let again = kit.http.get(kit.gateway.url(&path)).header("last-event-id", &last.id).send().await;
    assert_eq!(again.expect("an answer").status(), 204);
}

#[tokio::test]
async fn the_stream_of_a_job_ends_even_if_the_last_event_is_lost() {
    let kit = GalleyKit::start_with(RedisServer::start(), &[("GALLEY__GATEWAY__EVENT_KEEP_ALIVE_MS", "200")]).await;
    let id = kit.enqueue(&job_body("a", &json!([]))).await;
    let mut stream = JobEventsClient::open(kit.gateway.url(&format!("/ojs/v1/jobs/{id}/events")), None).await;
    stream.expect("job.enqueued").await;
    // Nothing can be written into it any more
    kit.redis_command(&["SET", "galley:events", "no stream"]).await;
    let url = kit.gateway.url(&format!("/ojs/v1/jobs/{id}"));
    assert_eq!(kit.http.delete(&url).send().await.expect("an answer").status(), 200);
    let rest = stream.rest().await;
    assert_eq!(rest.last().map(|message| message.event.as_str()), Some("job.cancelled"), "{rest:?}");
}

#[tokio::test]
async fn what_cannot_be_followed_is_refused() {
    let kit = GalleyKit::start_with(RedisServer::start(), &[("GALLEY__GATEWAY__MAX_EVENT_STREAMS", "2")]).await;
    let many = vec!["q"; 101].join(",");
    for (query, said) in [
        ("after=x", "position must"),
        ("after=1-2", "position must"),
        ("after=%2B1-1-1", "position must"),
        ("queues=A", "queue must match"),
        ("types=job%20x", "types must be"),
        (&format!("queues={many}"), "at most 100"),
        ("after=1-1-1&after=2-2-2", "query parameter after must be given once"),
    ] {
        let response = kit.get(&format!("{STREAM}?{query}")).await;
        assert_eq!(response.status(), 400, "{query}");
        let error: Value = response.json().await.expect("JSON");
        assert!(error["error"]["message"].as_str().is_some_and(|text| text.contains(said)), "{query}: {error}");
    }
    let last = kit.http.get(kit.gateway.url(STREAM)).header("last-event-id", "no").send().await;
    assert_eq!(last.expect("an answer").status(), 400);
    let unknown = "/ojs/v1/jobs/019539a4-b68c-7def-8000-1a2b3c4d5e6f/events";
    assert_eq!(kit.get(unknown).await.status(), 404);
    assert_eq!(kit.get("/ojs/v1/jobs/no/events").await.status(), 404);
    assert_eq!(kit.get("/ojs/v1/queues/A/events").await.status(), 400);

    let _streams = [
        JobEventsClient::open(kit.gateway.url(STREAM), None).await,
        JobEventsClient::open(kit.gateway.url(STREAM), None).await,
    ];
    let refused = kit.get(STREAM).await;
    assert_eq!(refused.status(), 503);
    assert!(refused.headers().contains_key("retry-after"));
    let error: Value = refused.json().await.expect("JSON");
    assert_eq!(error["error"]["code"], "too_many_event_streams");
    assert_eq!(kit.get("/ojs/v1/events").await.status(), 200, "the list costs nothing");
}

#[tokio::test]
async fn a_client_that_has_received_nothing_comes_back_with_the_id_of_the_beginning_and_misses_nothing() {
    let kit = GalleyKit::start().await;
    let first = kit.enqueue(&job_body("a", &json!([]))).await;
    eventually("its event is written", || async {
        let listed: Value = kit.get("/ojs/v1/events").await.json().await.ok()?;
        (!listed["events"].as_array()?.is_empty()).then_some(())
    })
    .await;
    for path in [STREAM.to_owned(), "/ojs/v1/queues/default/events".to_owned(), format!("/ojs/v1/jobs/{first}/events")]
    {
        let url = kit.gateway.url(&path);
        let mut stream = JobEventsClient::open(url.clone(), None).await;
        let beginning = stream.block().await.expect("a beginning");
        let id = beginning.lines().find_map(|line| line.strip_prefix("id: ")).expect("an id").to_owned();
        assert!(beginning.contains(&format!("data: {{\"after\":\"{id}\"}}")), "{beginning}");
        drop(stream);
        let missed = kit.enqueue(&job_body("a", &json!([]))).await;
        let mut stream = JobEventsClient::open(url, Some(&id)).await;
        let event = stream.expect("job.enqueued").await;
        let of_stream = if path.contains("/jobs/") { &first } else { &missed };
        assert_eq!(event.data["subject"], **of_stream, "{path}: {event:?}");
    }
}
