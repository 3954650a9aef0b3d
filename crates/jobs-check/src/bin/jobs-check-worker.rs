//! The queue-worker of a run: a handler in Rust that writes down what it does, and rules for endpoints and programs.

use std::{
    env,
    path::PathBuf,
    sync::{Arc, LazyLock},
};

use jobs_check::{
    handling::{HandledJob, run_job},
    history::HistoryWriter,
    plan::{JobBehaviour, JobRunner},
};
use worker::{Context, HandlerError, Worker};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

static WRITER: LazyLock<(PathBuf, Arc<HistoryWriter>)> = LazyLock::new(|| {
    let variable = |name: &str| env::var(name).unwrap_or_else(|_| panic!("{name} is not set"));
    let folder = PathBuf::from(variable("JOBS_CHECK_FOLDER"));
    let writer = HistoryWriter::open(&folder, &variable("JOBS_CHECK_NAME"));
    (folder, Arc::new(writer.unwrap_or_else(|error| panic!("the history cannot be written: {error:#}"))))
});

fn main() -> std::process::ExitCode {
    Worker::builder()
        .handler(JobRunner::Rust.job_type(), |context: Context, (key, behaviour, _): (u32, JobBehaviour, String)| {
            let job = HandledJob { id: context.id().to_string(), key, attempt: context.attempt(), behaviour };
            let (folder, writer) = &*WRITER;
            async move {
                let result = run_job(writer.clone(), folder, job).await;
                result.ok_or_else(|| HandlerError::retryable("as planned").with_code("planned"))
            }
        })
        .main()
}
