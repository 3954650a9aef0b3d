//! apalis-redis: bulk enqueues, claims of 100, tasks spawned in parallel; results are kept.

use std::time::Instant;

use apalis::prelude::*;
use apalis_redis::{Config, RedisStorage};
use bench_peers::{BULK, CONCURRENCY, Task as Asked, argument, print_enqueued, redis_url, task};

async fn noop(_argument: String) -> Result<(), BoxDynError> {
    Ok(())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let config = Config::default().queue("bench").batch_size(CONCURRENCY).emit_events(false);
    let mut storage = RedisStorage::<String>::new(apalis_redis::connect(redis_url()).await?).with_config(config);
    match task() {
        Asked::Enqueue(jobs) => {
            let began = Instant::now();
            for _ in 0..jobs / BULK {
                let bulk = (0..BULK).map(|_| argument()).collect();
                storage.push_bulk(bulk).await.map_err(|error| anyhow::anyhow!("{error}"))?;
            }
            print_enqueued(jobs, began.elapsed());
        }
        Asked::Work => {
            let worker = WorkerBuilder::new("bench")
                .backend(storage)
                .concurrency(CONCURRENCY)
                .parallelize(tokio::spawn)
                .build(noop);
            worker.run().await.map_err(|error| anyhow::anyhow!("{error}"))?;
        }
    }
    Ok(())
}
