//! A receiver of spans that prints one line for each: `otlp-receiver 0.0.0.0:4317`. It stands in for Jaeger on machines
//! that cannot pull its image, so that the compose file can be brought up as it is.

use std::{net::SocketAddr, time::Duration};

use testkit::OtlpReceiver;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let listen: SocketAddr = std::env::args().nth(1).unwrap_or_else(|| "0.0.0.0:4317".to_owned()).parse()?;
    let receiver = OtlpReceiver::start(listen);
    println!("receiving spans on {listen}");
    let mut printed = 0;
    loop {
        for span in receiver.spans().iter().skip(printed) {
            println!("{} {} {} {}", span.trace_id, span.span_id, span.service, span.name);
            printed += 1;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
