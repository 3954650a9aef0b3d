//! Prints which reports are built, from the first that is kept on. It survives lost connections and restarts of gateways.

use std::error::Error;

use galley_client::{Client, Event};
use rust_service::{Built, CHANNEL};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut news = Client::from_env()?.subscribe([CHANNEL]).since("-P1D");
    loop {
        match news.next().await? {
            Event::Message(message) => {
                let built: Built = serde_json::from_value(message.data)?;
                println!("{} is built: {}", built.title, built.id);
            }
            Event::Gap(gap) => eprintln!("{:?} reports are missing", gap.count),
            _ => {}
        }
    }
}
