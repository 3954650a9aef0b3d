//! The chefs of the original demo's demo, as ordinary HTTP clients: `demo http://127.0.0.1:8080 30`.
//!
//! Three chefs put dishes into the queue `demo`, which takes at most ten: a full queue answers 429, and the chef waits
//! and offers the dish again, as the original demo's `queue.put` blocks. Ends when every dish has been eaten.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering::SeqCst},
    },
    time::Duration,
};

use reqwest::Client;
use serde_json::{Value, json};

/// How long a chef waits before a refused dish is offered again.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let gateway = arguments.next().ok_or("usage: demo GATEWAY_URL [DISHES]")?;
    let dishes: i64 = arguments.next().map_or(Ok(30), |text| text.parse())?;
    let left = Arc::new(AtomicI64::new(dishes));
    let chefs: Vec<_> = (1..=3)
        .map(|number| {
            let chef = DemoProducer { name: format!("Thread-{number}"), gateway: gateway.clone(), http: Client::new() };
            tokio::spawn(chef.produce(left.clone()))
        })
        .collect();
    for chef in chefs {
        chef.await?.map_err(|error| error.to_string())?;
    }
    let http = Client::new();
    loop {
        let stats = queue_stats(&http, &gateway).await?;
        if stats["available"] == 0 && stats["active"] == 0 {
            return Ok(());
        }
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
}

struct DemoProducer {
    name: String,
    gateway: String,
    http: Client,
}

impl DemoProducer {
    async fn produce(self, left: Arc<AtomicI64>) -> Result<(), reqwest::Error> {
        while left.fetch_sub(1, SeqCst) > 0 {
            let dish = rand::random_range(0..9);
            self.enqueue(dish).await?;
            let stats = queue_stats(&self.http, &self.gateway).await?;
            println!("厨师 {} 做了 {dish} 饭 --- 还剩 {} 饭没卖完", self.name, stats["available"]);
            tokio::time::sleep(Duration::from_millis(rand::random_range(0..1000))).await;
        }
        Ok(())
    }

    async fn enqueue(&self, dish: u64) -> Result<(), reqwest::Error> {
        let body = json!({ "type": "demo.dish", "args": [dish], "options": { "queue": "demo" } });
        loop {
            let response = self.http.post(format!("{}/ojs/v1/jobs", self.gateway)).json(&body).send().await?;
            if response.status() != 429 {
                response.error_for_status()?;
                return Ok(());
            }
            tokio::time::sleep(RETRY_INTERVAL).await;
        }
    }
}

async fn queue_stats(http: &Client, gateway: &str) -> Result<Value, reqwest::Error> {
    let answer: Value =
        http.get(format!("{gateway}/ojs/v1/queues/demo/stats")).send().await?.error_for_status()?.json().await?;
    Ok(answer["queue"].clone())
}
