//! The worker for rules and for the demonstration: endpoints and programs are configured, not compiled in.
//!
//! `demo` has the handlers of the original demo, `conformance` those of the Open Job Spec's suites. All but the task from
//! the list are registered only with `queue_worker.demo_handlers`: some of them never end, and any client could run them.

mod conformance;
mod demo;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> anyhow::Result<()> {
    worker::Worker::builder()
        .configure(|builder, settings| {
            let builder = demo::register_task(builder);
            if settings.queue_worker.demo_handlers {
                conformance::register(demo::register_dish(builder))
            } else {
                builder
            }
        })
        .main()
}
