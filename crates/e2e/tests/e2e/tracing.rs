//! Traces: one from the request to the worker that runs the job.

use std::sync::{Arc, Mutex};

use e2e::{Service, eventually};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use crate::kit::{Kit, job};

/// An OTLP receiver over HTTP that keeps the bodies it is sent.
async fn receiver() -> (String, Arc<Mutex<Vec<u8>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}/v1/traces", listener.local_addr().expect("an address"));
    let bodies: Arc<Mutex<Vec<u8>>> = Arc::default();
    let kept = bodies.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let kept = kept.clone();
            tokio::spawn(async move {
                let mut buffer = vec![0; 65_536];
                while let Ok(read) = stream.read(&mut buffer).await {
                    if read == 0 {
                        break;
                    }
                    kept.lock().expect("no panic").extend_from_slice(&buffer[..read]);
                    // An empty answer is an empty ExportTraceServiceResponse
                    let answer = "HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
                    let _ = stream.write_all(answer.as_bytes()).await;
                }
            });
        }
    });
    (url, bodies)
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

#[tokio::test]
async fn a_job_belongs_to_the_trace_of_the_request_that_made_it() {
    let (url, bodies) = receiver().await;
    let variables = [("GALLEY__TELEMETRY__OTLP_ENDPOINT", url.as_str())];
    let kit = Kit::with(e2e::RedisServer::start(), &variables).await;
    let worker = kit.worker(&variables).await;
    let trace_id = "0af7651916cd43dd8448eb211c80319c";
    let request = kit.http.post(kit.gateway.url("/ojs/v1/jobs")).header("content-type", "application/json");
    let request = request.header("traceparent", format!("00-{trace_id}-b7ad6b7169203331-01"));
    let response = request.body(job("test.noop", &json!([])).to_string()).send().await.expect("an answer");
    let answer: serde_json::Value = response.json().await.expect("JSON");
    kit.reaches(answer["job"]["id"].as_str().expect("an id"), "completed").await;
    // Ending sends what is left
    let Kit { gateway, redis, .. } = kit;
    let ended = |service: Service| async { assert!(service.terminate().await.success()) };
    ended(gateway).await;
    ended(worker).await;
    drop(redis);
    let trace: Vec<u8> =
        (0..32).step_by(2).map(|at| u8::from_str_radix(&trace_id[at..at + 2], 16).expect("hex")).collect();
    eventually("both spans have arrived, in the same trace", || async {
        let bodies = bodies.lock().expect("no panic");
        let traced = bodies.windows(16).filter(|window| *window == trace).count();
        let both = contains(&bodies, b"POST /ojs/v1/jobs") && contains(&bodies, b"process test.noop");
        (both && traced >= 2).then_some(())
    })
    .await;
}
