//! The queue worker's binary: endpoints and programs are configured, not compiled in.
//!
//! `demo` has the handlers of the original demo, `conformance` those of the Open Job Spec's suites. All but the list's
//! `task` are registered only with `queue_worker.demo_handlers`: some never end, and any client could run them.

mod conformance;
mod demo;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
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
