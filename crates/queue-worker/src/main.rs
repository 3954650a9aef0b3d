//! The worker with the handlers that come with it, and its rules.

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> anyhow::Result<()> {
    queue_worker::Worker::builder().main()
}
