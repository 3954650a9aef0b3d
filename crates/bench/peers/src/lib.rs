//! What the programs here share: `<program> enqueue <jobs>` stores jobs and prints how long that took, `<program> work`
//! runs them until it is killed.

use std::time::Duration;

/// Jobs that are stored at a time.
pub const BULK: u32 = 1000;
/// Jobs that run at a time, as in a queue-worker.
pub const CONCURRENCY: usize = 100;

/// What a program is asked for.
pub enum Task {
    Enqueue(u32),
    Work,
}

/// Reads the command line.
///
/// # Panics
/// It says something else.
pub fn task() -> Task {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["enqueue", jobs] => Task::Enqueue(jobs.parse().expect("a number of jobs")),
        ["work"] => Task::Work,
        _ => panic!("enqueue <jobs>, or work"),
    }
}

/// The server.
///
/// # Panics
/// It is not said.
pub fn redis_url() -> String {
    std::env::var("PEER_REDIS_URL").expect("PEER_REDIS_URL")
}

/// The argument of every job.
pub fn argument() -> String {
    "x".repeat(200)
}

/// Prints what the benchmark reads.
pub fn print_enqueued(jobs: u32, time: Duration) {
    println!("enqueued {jobs} {}", time.as_secs_f64());
}
