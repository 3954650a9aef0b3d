//! bullmq-official: bulk enqueues, one worker, 100 jobs at a time; completed jobs are kept, which is its default.

use std::{sync::Arc, time::Instant};

use bench_peers::{BULK, CONCURRENCY, Task, argument, print_enqueued, redis_url, task};
use bullmq::{
    BulkJob, Job, Queue, QueueOptions, Worker, WorkerOptions,
    options::RedisConnectionOptions,
    worker::{CancellationToken, ProcessorFn},
};
use serde_json::{Value, json};

const QUEUE: &str = "bench";

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let connection = RedisConnectionOptions::new().url(redis_url());
    match task() {
        Task::Enqueue(jobs) => {
            let queue = Queue::with_options(QUEUE, QueueOptions::new().connection(connection)).await?;
            let began = Instant::now();
            for _ in 0..jobs / BULK {
                let bulk = (0..BULK).map(|_| BulkJob::new("noop", json!([argument()]))).collect();
                queue.add_bulk(bulk).await?;
            }
            print_enqueued(jobs, began.elapsed());
        }
        Task::Work => {
            let processor: ProcessorFn =
                Arc::new(|_job: Job, _token: CancellationToken| Box::pin(async { Ok(Value::Null) }));
            let options = WorkerOptions::new().connection(connection).concurrency(CONCURRENCY);
            let _worker = Worker::with_options(QUEUE, processor, options).await?;
            std::future::pending::<()>().await;
        }
    }
    Ok(())
}
