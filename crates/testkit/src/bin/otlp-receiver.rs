//! A receiver of spans that prints one line for each: `otlp-receiver 0.0.0.0:4317`. It stands in for Jaeger on machines
//! that cannot pull its image, so that the compose file can be brought up as it is. With `json` behind the address the lines
//! are JSON, which `deploy/dev/draw-trace.py` draws. With `discard` it keeps and prints nothing: for benchmarks.

use std::{net::SocketAddr, time::Duration};

use serde_json::json;
use testkit::{OtlpReceiver, ReceivedSpan};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut words = std::env::args().skip(1);
    let listen: SocketAddr = words.next().unwrap_or_else(|| "0.0.0.0:4317".to_owned()).parse()?;
    let how = words.next().unwrap_or_default();
    let is_json = how == "json";
    if how == "discard" {
        testkit::serve_otlp_sink(listen).await;
        return Ok(());
    }
    let receiver = OtlpReceiver::start(listen);
    if !is_json {
        println!("receiving spans on {listen}");
    }
    let mut printed = 0;
    loop {
        for span in receiver.spans().iter().skip(printed) {
            let ReceivedSpan { trace_id, span_id, service, name, .. } = span;
            if is_json {
                println!("{}", to_json(span));
            } else {
                println!("{trace_id} {span_id} {service} {name}");
            }
            printed += 1;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn to_json(span: &ReceivedSpan) -> serde_json::Value {
    json!({
        "trace_id": span.trace_id, "span_id": span.span_id, "parent_span_id": span.parent_span_id,
        "service": span.service, "name": span.name, "kind": span.kind, "is_error": span.is_error,
        "attributes": span.attributes, "links": span.links, "began": span.began, "ended": span.ended,
    })
}
