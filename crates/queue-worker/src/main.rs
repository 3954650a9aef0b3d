//! The worker with the handlers that come with it, and its rules.

fn main() -> anyhow::Result<()> {
    queue_worker::Worker::builder().main()
}
