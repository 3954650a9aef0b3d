//! Clients that ask for large answers and do not read them take a bounded amount of memory.

use serde_json::{Value, json};
use testkit::{RedisServer, eventually};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::kit::GalleyKit;

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_nobody_reads_take_bounded_memory_and_small_ones_go_on() {
    let settings = [("GALLEY__GATEWAY__ANSWERS_MAX_BYTES", "1048576")];
    let kit = GalleyKit::start_with(RedisServer::start(), &settings).await;
    let job = json!({ "type": "a", "args": ["x".repeat(900_000)], "queue": "large",
        "retry": { "on_exhaustion": "dead_letter" } });
    for _ in 0..16 {
        kit.enqueue(&job).await;
    }
    // A fetch has four mebibytes
    while let Some(job) = kit.fetch("large").await {
        let failure = json!({ "job_id": job["id"], "error": { "code": "x", "message": "m", "retryable": false } });
        assert_eq!(kit.post("/ojs/v1/workers/nack", &failure).await.status(), 200);
    }
    let page = "/ojs/v1/dead-letter?limit=100";
    // Larger than what the kernel takes for a client that does not read
    let address = kit.gateway.url("").trim_start_matches("http://").to_owned();
    let mut silent = TcpStream::connect(&address).await.expect("it listens");
    let request = format!("GET {page} HTTP/1.1\r\nhost: localhost\r\n\r\n");
    silent.write_all(request.as_bytes()).await.expect("sent");
    // Its answer has begun, so it is not the one that is refused
    let mut status = [0; 12];
    silent.read_exact(&mut status).await.expect("an answer");
    assert_eq!(&status, b"HTTP/1.1 200");
    let refused: Value = eventually("a large answer is refused", || async {
        let answer = kit.get(page).await;
        if answer.status() != 503 {
            return None;
        }
        assert!(answer.headers().contains_key("retry-after"));
        answer.json().await.ok()
    })
    .await;
    assert_eq!(refused["error"]["code"], "too_many_answers");
    let fetched = kit.post("/ojs/v1/workers/fetch", &json!({ "queues": ["default"] })).await;
    assert_eq!(fetched.status(), 503, "nothing is claimed that cannot be sent");
    assert_eq!(kit.get("/ojs/v1/queues").await.status(), 200);
    drop(silent);
    eventually("large answers go out again", || async { (kit.get(page).await.status() == 200).then_some(()) }).await;
}
