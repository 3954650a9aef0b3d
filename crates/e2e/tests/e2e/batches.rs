//! Many jobs in one request: all or none, each on its own, or a stream of lines.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Shutdown, TcpStream},
    time::Duration,
};

use serde_json::{Value, json};
use testkit::RedisServer;

use crate::kit::{GalleyKit, job_body};

const PATH: &str = "/ojs/v1/jobs/batch";

async fn send(kit: &GalleyKit, body: &Value) -> (u16, Value) {
    let response = kit.post(PATH, body).await;
    (response.status().as_u16(), response.json().await.expect("JSON"))
}

/// The numbers that jobs carry as their only argument, as a program gets them.
async fn fetched(kit: &GalleyKit, queue: &str) -> Vec<u64> {
    let mut numbers = Vec::new();
    loop {
        let body = json!({ "queues": [queue], "count": 100 });
        let answer: Value = kit.post("/ojs/v1/workers/fetch", &body).await.json().await.expect("JSON");
        let jobs = answer["jobs"].as_array().expect("an array");
        if jobs.is_empty() {
            return numbers;
        }
        numbers.extend(jobs.iter().map(|job| job["args"][0].as_u64().expect("a number")));
    }
}

#[tokio::test]
async fn one_bad_job_refuses_an_atomic_batch_and_nothing_is_written() {
    let kit = GalleyKit::start().await;
    let good = job_body("a", &json!([1]));
    let before = kit.redis_keys().await;
    let cases = [
        (json!([good, good, { "type": "a" }]), 400, "jobs[2]: args is required"),
        (json!([{ "type": "a", "args": [], "retry": { "max_attempts": -1 } }, good]), 422, "jobs[0]: retry"),
        (json!([good, 5]), 400, "jobs[1]: a job must be a JSON object"),
        (json!([good, { "type": "a", "args": [], "queue": "{x}" }]), 400, "jobs[1]: queue must match"),
        (json!([good, { "type": "a", "args": ["x".repeat(2 << 20)] }]), 413, "jobs[1]: a job must have at most"),
    ];
    for (jobs, status, message) in cases {
        let (got, answer) = send(&kit, &json!({ "jobs": jobs })).await;
        assert_eq!(got, status, "{message}: {answer}");
        let said = answer["error"]["message"].as_str().expect("a message");
        assert!(said.starts_with(message), "{said}");
        assert_eq!(kit.redis_keys().await, before, "{message}: something was written");
    }
}

#[tokio::test]
async fn a_batch_with_a_job_that_cannot_be_stored_stores_none() {
    let kit = GalleyKit::start_with(RedisServer::start(), &[("GALLEY__QUEUES__SMALL__MAX_DEPTH", "2")]).await;
    let small = json!({ "type": "a", "args": [], "queue": "small" });
    let (status, answer) = send(&kit, &json!({ "jobs": [job_body("a", &json!([])), small, small, small] })).await;
    assert_eq!((status, &answer["error"]["code"]), (429, &json!("queue_full")), "{answer}");
    let taken = "019539a4-b68c-7def-8000-1a2b3c4d5e6f";
    let chosen = json!({ "type": "a", "args": [], "id": taken });
    let (status, answer) = send(&kit, &json!({ "jobs": [small, chosen, chosen] })).await;
    assert_eq!((status, &answer["error"]["code"]), (409, &json!("duplicate")), "{answer}");
    let unique = json!({ "type": "u", "args": [], "unique": {} });
    let (status, answer) = send(&kit, &json!({ "jobs": [small, unique, unique] })).await;
    assert_eq!((status, &answer["error"]["code"]), (409, &json!("duplicate")), "{answer}");
    for queue in ["default", "small"] {
        let stats: Value = kit.get(&format!("/ojs/v1/queues/{queue}?create=true")).await.json().await.expect("JSON");
        assert_eq!(stats["queue"]["available"], 0, "{stats}");
    }
    let (status, answer) = send(&kit, &json!({ "jobs": [small, small] })).await;
    assert_eq!(status, 201, "what fits is taken: {answer}");
}

#[tokio::test]
async fn each_job_of_a_per_item_batch_has_its_own_answer_in_order() {
    let kit = GalleyKit::start().await;
    let jobs: Vec<Value> =
        (0..200).map(|n| if n % 3 == 0 { json!({ "type": "a" }) } else { job_body("a", &json!([n])) }).collect();
    let (status, answer) = send(&kit, &json!({ "jobs": jobs, "mode": "per_item" })).await;
    assert_eq!(status, 200);
    let results = answer["results"].as_array().expect("an array");
    assert_eq!(results.len(), 200);
    for (n, result) in results.iter().enumerate() {
        if n % 3 == 0 {
            assert_eq!(
                (&result["error"]["code"], &result["error"]["status"]),
                (&json!("invalid_request"), &json!(400))
            );
        } else {
            assert_eq!((&result["job"]["args"], &result["job"]["state"]), (&json!([n]), &json!("available")));
        }
    }
    let expected: Vec<u64> = (0..200).filter(|n| n % 3 != 0).collect();
    assert_eq!(fetched(&kit, "default").await, expected);
}

#[tokio::test]
async fn a_thousand_jobs_arrive_in_their_order_and_one_more_is_refused() {
    let kit = GalleyKit::start().await;
    let thousand: Vec<Value> = (0..1000)
        .map(|n| json!({ "type": "a", "args": [n], "queue": if n % 2 == 0 { "even" } else { "odd" } }))
        .collect();
    let mut more = thousand.clone();
    more.push(job_body("a", &json!([])));
    let before = kit.redis_keys().await;
    for (jobs, got) in [(json!(more), "got 1001"), (json!([]), "got 0")] {
        let (status, answer) = send(&kit, &json!({ "jobs": jobs })).await;
        assert_eq!(status, 400);
        assert!(answer["error"]["message"].as_str().is_some_and(|text| text.ends_with(got)), "{answer}");
    }
    let (status, answer) = send(&kit, &json!({ "jobs": thousand, "mode": "some" })).await;
    assert_eq!(status, 400, "{answer}");
    assert_eq!(kit.redis_keys().await, before);
    let (status, answer) = send(&kit, &json!({ "jobs": thousand })).await;
    assert_eq!((status, answer["jobs"].as_array().map(Vec::len)), (201, Some(1000)));
    assert!((0..1000).all(|n| answer["jobs"][n]["args"] == json!([n])));
    for (queue, odd) in [("even", 0), ("odd", 1)] {
        assert_eq!(fetched(&kit, queue).await, (0..500).map(|n| 2 * n + odd).collect::<Vec<_>>(), "{queue}");
    }
}

/// Sends lines over a connection of its own, chunk by chunk.
struct NdjsonClient {
    stream: TcpStream,
    answer: BufReader<TcpStream>,
}

impl NdjsonClient {
    fn open(kit: &GalleyKit) -> Self {
        let mut stream = TcpStream::connect(kit.gateway.address()).expect("it listens");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
        let head = "POST /ojs/v1/jobs/stream HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n";
        stream.write_all(head.as_bytes()).expect("sent");
        let answer = BufReader::new(stream.try_clone().expect("clones"));
        Self { stream, answer }
    }

    fn send(&mut self, text: &str) {
        self.stream.write_all(format!("{:x}\r\n{text}\r\n", text.len()).as_bytes()).expect("sent");
    }

    /// The next line of the answer that is JSON; none when the answer is over.
    fn next(&mut self) -> Option<Value> {
        loop {
            let mut line = String::new();
            // The last chunk is an empty one; whether the connection closes then is another matter
            if self.answer.read_line(&mut line).expect("an answer") == 0 || line == "0\r\n" {
                return None;
            }
            if line.starts_with('{') {
                return Some(serde_json::from_str(&line).expect("JSON"));
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn five_thousand_lines_are_answered_in_order_with_bad_ones_in_between() {
    use std::fmt::Write;

    let kit = GalleyKit::start().await;
    let mut body = String::new();
    for n in 0..5000 {
        match n % 10 {
            3 => body.push_str("{\"type\":\n"),
            // Blank lines have no answer
            7 => writeln!(body, "\r\n  \n{{\"type\":\"Bad\",\"args\":[{n}]}}").expect("a string"),
            _ => writeln!(body, "{{\"type\":\"a\",\"args\":[{n}]}}").expect("a string"),
        }
    }
    let request = kit.http.post(kit.gateway.url("/ojs/v1/jobs/stream")).header("content-type", "application/x-ndjson");
    let response = request.body(body).send().await.expect("an answer");
    assert_eq!(
        (response.status().as_u16(), &response.headers()["content-type"]),
        (200, &"application/x-ndjson".parse().expect("a value"))
    );
    let text = response.text().await.expect("text");
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(lines.len(), 5000);
    for (n, line) in lines.iter().enumerate() {
        match n % 10 {
            3 => assert_eq!(line["error"]["code"], "invalid_payload", "{n}: {line}"),
            7 => assert_eq!(line["error"]["code"], "invalid_request", "{n}: {line}"),
            _ => assert_eq!(line["job"]["args"], json!([n]), "{line}"),
        }
    }
    let expected: Vec<u64> = (0..5000).filter(|n| n % 10 != 3 && n % 10 != 7).collect();
    assert!(fetched(&kit, "default").await == expected, "they arrive in their order");
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_are_answered_while_others_still_come() {
    let kit = GalleyKit::start().await;
    let mut lines = NdjsonClient::open(&kit);
    for n in 0..3 {
        lines.send(&format!("{{\"type\":\"a\",\"args\":[{n}]}}\n{{\"type\":\"a\","));
        let answered = lines.next().expect("an answer");
        assert_eq!(answered["job"]["args"], json!([n]));
        // The other half of the second line
        lines.send("\"args\":[\"half\"]}\n");
        assert_eq!(lines.next().expect("an answer")["job"]["args"], json!(["half"]));
    }
    // The last line needs no end
    lines.send("{\"type\":\"a\",\"args\":[\"last\"]}");
    lines.send("");
    assert_eq!(lines.next().expect("an answer")["job"]["args"], json!(["last"]));
    assert_eq!(lines.next(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_that_is_too_long_ends_the_stream_and_what_came_before_is_stored() {
    let kit = GalleyKit::start_with(RedisServer::start(), &[("GALLEY__GATEWAY__BODY_LIMIT_BYTES", "2048")]).await;
    let mut lines = NdjsonClient::open(&kit);
    lines.send("{\"type\":\"a\",\"args\":[1]}\n");
    assert_eq!(lines.next().expect("an answer")["job"]["args"], json!([1]));
    lines.send(&"x".repeat(5000));
    let refused = lines.next().expect("an answer");
    assert!(refused["error"]["message"].as_str().is_some_and(|text| text.contains("at most 2048 bytes")), "{refused}");
    assert_eq!(lines.next(), None);
    let mut lines = NdjsonClient::open(&kit);
    let whole = format!("{{\"type\":\"a\",\"args\":[\"{}\"]}}\n{{\"type\":\"a\",\"args\":[2]}}\n", "x".repeat(5000));
    lines.send(&whole);
    lines.send("");
    assert_eq!(lines.next().expect("an answer")["error"]["code"], "payload_too_large");
    assert_eq!(
        lines.next().expect("an answer")["job"]["args"],
        json!([2]),
        "a whole line that is too long is one refusal"
    );
    assert_eq!(lines.next(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_cut_off_stores_its_whole_lines_only() {
    let kit = GalleyKit::start().await;
    let mut lines = NdjsonClient::open(&kit);
    lines.send("{\"type\":\"a\",\"args\":[1]}\n{\"type\":\"a\",\"args\":[2]}\n");
    assert_eq!(lines.next().expect("an answer")["job"]["args"], json!([1]));
    assert_eq!(lines.next().expect("an answer")["job"]["args"], json!([2]));
    // A line that looks whole, but nobody said so
    lines.send("{\"type\":\"a\",\"args\":[3]}");
    lines.stream.shutdown(Shutdown::Write).expect("closes");
    let mut rest = String::new();
    let _ = lines.answer.read_to_string(&mut rest);
    assert!(!rest.contains("[3]"), "{rest}");
    assert_eq!(fetched(&kit, "default").await, [1, 2]);
    // The gateway is as it was
    assert_eq!(kit.post("/ojs/v1/jobs", &job_body("a", &json!([4]))).await.status(), 201);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_stops_ends_a_stream_of_lines_and_says_so() {
    let kit = GalleyKit::start().await;
    let mut lines = NdjsonClient::open(&kit);
    lines.send("{\"type\":\"a\",\"args\":[1]}\n{\"type\":\"a\",");
    assert_eq!(lines.next().expect("an answer")["job"]["args"], json!([1]));
    let GalleyKit { gateway, redis: _redis, .. } = kit;
    let stopped = tokio::spawn(gateway.terminate());
    assert_eq!(lines.next().expect("an answer")["error"]["code"], "backend_unavailable");
    assert_eq!(lines.next(), None);
    assert!(stopped.await.expect("no panic").success());
}

#[tokio::test]
async fn a_stream_that_is_not_declared_as_lines_is_refused() {
    let kit = GalleyKit::start().await;
    let before = kit.redis_keys().await;
    for kind in ["application/json", "text/plain", ""] {
        let request = kit.http.post(kit.gateway.url("/ojs/v1/jobs/stream")).header("content-type", kind);
        let response = request.body("{\"type\":\"a\",\"args\":[]}\n").send().await.expect("an answer");
        assert_eq!(response.status(), 415, "{kind:?}");
    }
    assert_eq!(kit.redis_keys().await, before);
}

#[tokio::test]
async fn the_times_in_a_batch_are_reckoned_from_one_moment() {
    let kit = GalleyKit::start().await;
    let jobs: Vec<Value> = (0..60).map(|n| json!({ "type": "a", "args": [n], "scheduled_at": "+PT1H" })).collect();
    for (mode, pointer, inner) in [("atomic", "/jobs", ""), ("per_item", "/results", "/job")] {
        let answer: Value = kit.post(PATH, &json!({ "jobs": jobs, "mode": mode })).await.json().await.expect("JSON");
        let stored = answer.pointer(pointer).and_then(Value::as_array).expect("jobs");
        let start = |job: &Value| job.pointer(&format!("{inner}/scheduled_at")).cloned().expect("a time");
        assert_eq!(stored.len(), jobs.len());
        assert!(stored.iter().all(|job| start(job) == start(&stored[0])), "{mode}: {answer}");
    }
}
