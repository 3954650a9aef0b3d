//! The worker with the handlers that come with it.

fn main() -> anyhow::Result<()> {
    queue_worker::main()
}
