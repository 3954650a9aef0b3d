//! How many commands this process sends to Redis, and how long their answers take.

use std::{
    collections::HashMap,
    sync::{
        LazyLock, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use common::prometheus::{AtomicHistogram, DURATION_MICROS, add_source};
use redis::{Arg, Cmd, Pipeline};

use crate::slots;

type DurationHistogram = AtomicHistogram<{ DURATION_MICROS.len() }>;

static COMMANDS: AtomicU64 = AtomicU64::new(0);
static ROUND_TRIPS: DurationHistogram = new_histogram();
/// By the hash with which a script is called. There are as many as files of scripts.
static SCRIPTS: LazyLock<RwLock<HashMap<String, &'static ScriptTimes>>> = LazyLock::new(RwLock::default);

struct ScriptTimes {
    name: &'static str,
    round_trips: DurationHistogram,
}

const fn new_histogram() -> DurationHistogram {
    AtomicHistogram::new(DURATION_MICROS, 1e6)
}

/// Shows them with the metrics of this process.
pub(crate) fn show() {
    static SHOWN: LazyLock<()> = LazyLock::new(|| {
        add_source(|samples| {
            #[expect(clippy::cast_precision_loss, reason = "Prometheus counts with floats")]
            samples.counter("galley_redis_commands_total", &[], COMMANDS.load(Relaxed) as f64);
            samples.histogram("galley_redis_command_seconds", &[], &ROUND_TRIPS);
            for script in SCRIPTS.read().unwrap_or_else(PoisonError::into_inner).values() {
                samples.histogram("galley_script_seconds", &[("script", script.name)], &script.round_trips);
            }
            true
        });
    });
    LazyLock::force(&SHOWN);
}

/// Tells scripts apart from now on. `file` is that of the script.
pub(crate) fn note_script(file: &'static str, hash: &str) {
    let name = file.strip_suffix(".lua").unwrap_or(file);
    let times = Box::leak(Box::new(ScriptTimes { name, round_trips: new_histogram() }));
    SCRIPTS.write().unwrap_or_else(PoisonError::into_inner).insert(hash.to_owned(), times);
}

/// A command or a pipeline that is on its way.
pub(crate) struct RoundTrip {
    sent_at: Instant,
    script: Option<&'static ScriptTimes>,
}

impl RoundTrip {
    pub(crate) fn of_command(command: &Cmd) -> Self {
        slots::check_command(command);
        COMMANDS.fetch_add(1, Relaxed);
        Self { sent_at: Instant::now(), script: script_of(command) }
    }

    pub(crate) fn of_pipeline(pipeline: &Pipeline) -> Self {
        slots::check_pipeline(pipeline);
        COMMANDS.fetch_add(pipeline.len() as u64, Relaxed);
        Self { sent_at: Instant::now(), script: None }
    }

    /// The answer is there, whatever it is.
    pub(crate) fn end(self) {
        let micros = u64::try_from(self.sent_at.elapsed().as_micros()).unwrap_or(u64::MAX);
        ROUND_TRIPS.record(micros);
        if let Some(script) = self.script {
            script.round_trips.record(micros);
        }
    }
}

/// Counts a command that may wait at the server: how long says nothing about Redis.
pub(crate) fn count_blocking(command: &Cmd) {
    slots::check_command(command);
    COMMANDS.fetch_add(1, Relaxed);
}

fn script_of(command: &Cmd) -> Option<&'static ScriptTimes> {
    let mut arguments = command.args_iter();
    let Some(Arg::Simple(b"EVALSHA")) = arguments.next() else { return None };
    let Some(Arg::Simple(hash)) = arguments.next() else { return None };
    SCRIPTS.read().unwrap_or_else(PoisonError::into_inner).get(std::str::from_utf8(hash).ok()?).copied()
}
