//! Clients that hang up in the middle of a change: what was begun is finished, or taken back.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream},
};

use serde_json::{Value, json};
use testkit::{AnswerHoldProxy, ServiceProcess, TEST_TIMEOUT, eventually};

use crate::{
    kit::{GalleyKit, job_body},
    pull::{LONG_MS, wait_for_waiters_of},
};

/// A gateway that waits for answers as long as they are held, whatever takes a test so long.
async fn start_behind(way: &AnswerHoldProxy) -> ServiceProcess {
    let patient = ("GALLEY__REDIS__RESPONSE_TIMEOUT_MS", "60000");
    let behind = ServiceProcess::start_with_redis_url("gateway", &way.url(), &[patient]).await;
    behind.wait_until_ready().await;
    behind
}

/// Sends a request over a connection of its own.
fn send_raw(gateway: &ServiceProcess, path: &str, body: &Value) -> TcpStream {
    let body = body.to_string();
    let head = format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n");
    let mut stream = TcpStream::connect(gateway.address()).expect("it listens");
    write!(stream, "{head}Content-Length: {}\r\n\r\n{body}", body.len()).expect("sent");
    stream
}

/// Hangs up, and waits until the gateway has closed the connection too.
async fn hang_up(mut client: TcpStream) {
    let gone = tokio::task::spawn_blocking(move || {
        client.shutdown(Shutdown::Write).expect("connected");
        client.set_read_timeout(Some(TEST_TIMEOUT)).expect("a timeout");
        client.read(&mut [0; 1])
    });
    assert!(!matches!(gone.await.expect("no panic"), Ok(1)), "the gateway answers nobody");
}

#[tokio::test]
async fn a_fetch_hands_back_what_it_claimed_for_a_client_that_hangs_up_before_the_answer_of_the_claim() {
    let kit = GalleyKit::start().await;
    let way = AnswerHoldProxy::start(&kit.redis).await;
    let behind = start_behind(&way).await;
    let fetch = |wait_ms: u64| {
        send_raw(&behind, "/ojs/v1/workers/fetch", &json!({ "queues": ["default"], "count": 3, "wait_ms": wait_ms }))
    };
    let active = async || -> Value {
        let stats: Value = kit.get("/ojs/v1/queues/default").await.json().await.expect("JSON");
        stats["queue"]["active"].clone()
    };
    // How the answer of a claim begins
    let answer = b"\r\n:1\r\n:1";
    // A fetch that finds a job at once, and one that waits for it
    for waits in [false, true] {
        let client = if waits {
            let client = fetch(LONG_MS);
            wait_for_waiters_of(&kit, &behind, 1).await;
            way.hold_from(answer);
            kit.enqueue(&job_body("a", &json!([1]))).await;
            client
        } else {
            kit.enqueue(&job_body("a", &json!([0]))).await;
            way.hold_from(answer);
            fetch(0)
        };
        way.wait_until_held().await;
        assert_eq!(active().await, 1, "it is claimed");
        hang_up(client).await;
        way.release();
        eventually("it is handed back", || async { (active().await == 0).then_some(()) }).await;
        let job = kit.fetch("default").await.expect("it is available");
        assert_eq!(job["attempt"], 1, "it is the first attempt that counts");
        assert_eq!(kit.post("/ojs/v1/workers/ack", &json!({ "job_id": job["id"] })).await.status(), 200);
    }
}

#[tokio::test]
async fn an_atomic_batch_whose_client_hangs_up_in_the_middle_is_stored_whole() {
    let kit = GalleyKit::start().await;
    let way = AnswerHoldProxy::start(&kit.redis).await;
    let behind = start_behind(&way).await;
    let jobs: Vec<Value> = (0..5).map(|n| json!({ "type": format!("a.t{n}"), "args": [], "unique": {} })).collect();
    way.hold_from(b"created");
    let client = send_raw(&behind, "/ojs/v1/jobs/batch", &json!({ "jobs": jobs }));
    way.wait_until_held().await;
    hang_up(client).await;
    way.release();
    eventually("all are stored", || async {
        let stats: Value = kit.get("/ojs/v1/queues/default").await.json().await.ok()?;
        (stats["queue"]["available"] == 5).then_some(())
    })
    .await;
}
